//! Errors of the API server in words: what was tried, why it did not work, whose turn it is.

use std::error::Error as _;

use anyhow::anyhow;
use kube::Error;

/// For results of API calls: `.doing("list pods")`.
pub(super) trait Words<T> {
    fn doing(self, what: &str) -> anyhow::Result<T>;
}

impl<T> Words<T> for Result<T, Error> {
    fn doing(self, what: &str) -> anyhow::Result<T> {
        self.map_err(|error| anyhow!("cannot {what}: {}", words(&error)))
    }
}

pub(super) fn words(error: &Error) -> String {
    match error {
        Error::Api(status) => match status.code {
            401 => "the API server does not accept these credentials".to_owned(),
            // Its message names the user, the verb, the resource and the namespace.
            403 => format!("you are not allowed to: {}", status.message),
            404 => format!("it is not there: {}", status.message),
            429 => "the API server is overloaded; try again".to_owned(),
            _ => status.message.clone(),
        },
        Error::HyperError(_) | Error::Service(_) => {
            format!("the API server cannot be reached: {}", innermost(error))
        }
        Error::Auth(_) => format!("the kubeconfig's credentials cannot be had: {}", innermost(error)),
        other => other.to_string(),
    }
}

/// The last of a chain of errors: `connection refused` rather than four layers of clients.
fn innermost(error: &Error) -> String {
    let mut last: &dyn std::error::Error = error;
    let mut source = error.source();
    while let Some(inner) = source {
        last = inner;
        source = inner.source();
    }
    last.to_string()
}

/// The object is not there, which is an answer and no error.
pub(super) fn is_missing(error: &Error) -> bool {
    matches!(error, Error::Api(status) if status.code == 404)
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn api(code: u16, message: &str) -> Error {
        Error::Api(Box::new(Status::failure(message, "").with_code(code)))
    }

    #[test]
    fn an_error_says_what_was_tried_and_why_it_did_not_work() {
        let cases = [
            (
                api(403, "pods is forbidden: User \"a\" cannot list"),
                "not allowed to: pods is forbidden: User",
            ),
            (api(401, "Unauthorized"), "does not accept these credentials"),
            (api(500, "etcd is away"), "cannot list pods: etcd is away"),
            (Error::Service("no route to host".into()), "cannot be reached: no route to host"),
        ];
        for (error, part) in cases {
            let told = Err::<(), _>(error).doing("list pods").unwrap_err().to_string();
            assert!(told.starts_with("cannot list pods: ") && told.contains(part), "{told}");
        }
    }
}
