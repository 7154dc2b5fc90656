//! What whoever uses these commands must be allowed to do, and whether the user is. What is to be allowed is derived from the objects that
//! `weft install` applies and `weft uninstall` deletes; the few other requests are listed here.

use anyhow::Result;
use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::{DynamicObject, PostParams};
use kube::{Api, Client};

use super::super::manifest::{self, Images};
use super::super::words::Words as _;
use super::super::{NAMESPACE, uninstall};

/// An object of the manifest is made or changed, looked at until it is served or gone, and deleted.
const ON_APPLIED: [&str; 4] = ["create", "patch", "get", "delete"];
/// One that weft-control makes goes with it.
const ON_MADE_BY_CONTROL: [&str; 2] = ["get", "delete"];
/// Verb, API group, resource; whether in Weft's namespace only. An exec is a GET that is upgraded to a WebSocket, which newer API servers
/// let pass to whoever may create one besides.
const OTHERS: [(&str, &str, &str, bool); 8] = [
    ("list", "", "pods", true),
    // Of nodes that are given up.
    ("delete", "", "pods", true),
    ("get", "", "pods/exec", true),
    ("create", "", "pods/exec", true),
    ("list", "", "nodes", false),
    ("list", "", "namespaces", false),
    ("list", "rbac.authorization.k8s.io", "clusterroles", false),
    ("list", "rbac.authorization.k8s.io", "clusterrolebindings", false),
];
/// What the API server wants of somebody who gives rights away that he has not himself.
const GRANTS: [(&str, &str, bool); 4] = [
    ("escalate", "clusterroles", false),
    ("bind", "clusterroles", false),
    ("escalate", "roles", true),
    ("bind", "roles", true),
];
/// Each is a request; they go over one connection.
const ASKED_AT_ONCE_MAX: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Right {
    pub(super) verb: &'static str,
    pub(super) group: String,
    /// With its subresource.
    pub(super) resource: String,
    pub(super) namespace: Option<&'static str>,
}

impl Right {
    fn new(verb: &'static str, group: &str, resource: &str, namespaced: bool) -> Self {
        let namespace = namespaced.then_some(NAMESPACE);
        Self { verb, group: group.into(), resource: resource.into(), namespace }
    }

    /// Of roles; whoever holds all that is in them does without.
    pub(super) fn grants(&self) -> bool {
        GRANTS.iter().any(|(verb, ..)| *verb == self.verb)
    }

    /// What it is a right on.
    pub(super) fn place(&self) -> String {
        match self.namespace {
            Some(namespace) => format!("{} in {namespace}", self.resource),
            None => self.resource.clone(),
        }
    }
}

#[derive(Debug)]
pub(super) struct Permission {
    pub(super) right: Right,
    pub(super) allowed: bool,
}

/// Pure: all that install, check, status and uninstall do, each once.
pub(super) fn needed() -> Result<Vec<Right>> {
    let mut all: Vec<Right> = Vec::new();
    let mut add = |right: Right| {
        if !all.contains(&right) {
            all.push(right);
        }
    };
    let mut on = |objects: &[DynamicObject], verbs: &[&'static str]| -> Result<()> {
        for object in objects {
            let resource = manifest::resource(object)?;
            let namespaced = object.metadata.namespace.is_some();
            verbs
                .iter()
                .for_each(|&verb| add(Right::new(verb, &resource.group, &resource.plural, namespaced)));
        }
        Ok(())
    };
    on(&manifest::objects(&manifest::text(&Images::default())?)?, &ON_APPLIED)?;
    on(&uninstall::made_by_control(), &ON_MADE_BY_CONTROL)?;
    OTHERS.into_iter().for_each(|(verb, group, resource, own)| add(Right::new(verb, group, resource, own)));
    let of_roles = "rbac.authorization.k8s.io";
    GRANTS.into_iter().for_each(|(verb, resource, own)| add(Right::new(verb, of_roles, resource, own)));
    Ok(all)
}

/// Asks the API server what of it the user may do.
pub(super) async fn ask(client: &Client) -> Result<Vec<Permission>> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let reviews = &reviews;
    let ask = |right: Right| async move {
        let answer = reviews.create(&PostParams::default(), &review(&right)).await;
        let status = answer.doing("ask what you may do")?.status;
        Ok(Permission { right, allowed: status.is_some_and(|status| status.allowed) })
    };
    futures_util::stream::iter(needed()?).map(ask).buffered(ASKED_AT_ONCE_MAX).try_collect().await
}

fn review(right: &Right) -> SelfSubjectAccessReview {
    let (resource, subresource) = match right.resource.split_once('/') {
        Some((resource, subresource)) => (resource, Some(subresource.to_owned())),
        None => (right.resource.as_str(), None),
    };
    let attributes = ResourceAttributes {
        verb: Some(right.verb.into()),
        group: Some(right.group.clone()),
        resource: Some(resource.into()),
        subresource,
        namespace: right.namespace.map(str::to_owned),
        ..ResourceAttributes::default()
    };
    SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() },
        ..Default::default()
    }
}

#[cfg(test)]
#[path = "permissions_tests.rs"]
mod tests;
