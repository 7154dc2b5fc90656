//! `weft install`: applies the embedded manifest on the server's side, and waits until it runs. An installed Weft is upgraded.
//!
//! The order is what makes an upgrade safe: definitions, then weft-control, then weft-node, which the DaemonSet's controller
//! replaces node by node.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{DynamicObject, Patch, PatchParams};

use super::check::{self, Level};
use super::manifest::{self, Images, kind, name};
use super::readiness::{self, Workload};
use super::words::Words as _;
use super::{Cluster, Target};

/// Who owns the fields that are applied.
const FIELD_MANAGER: &str = "weft";
/// A definition is served within a second; a busy API server may take some.
const DEFINITION_WAIT_MAX: Duration = Duration::from_secs(30);
const DEFINITION_ASK_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
#[command(after_help = "\
Applies what deploy/manifests/weft.yaml of this version holds, into the namespace weft-system: kinds, roles, weft-control and \
weft-node. Run again with another version it upgrades: kinds first, then weft-control, then weft-node, one node at a time. \
Fields that others changed are set back. For more settings use the Helm chart, deploy/helm/weft; what Helm installed is left to \
`helm upgrade`, which knows its values.

Weft publishes no images: build them with deploy/Dockerfile and push them to a registry of yours, or import those of \
deploy/images.sh on each node.

Examples:
  weft install --registry registry.example/mesh
  weft install --dry-run | kubectl diff --server-side -f -")]
pub(crate) struct Arguments {
    #[command(flatten)]
    target: Target,
    /// Where weft-control and weft-node are pulled from
    #[arg(long, value_name = "REGISTRY", default_value_t = Images::default().registry)]
    registry: String,
    /// Which version of them
    #[arg(long, value_name = "TAG", default_value_t = Images::default().tag)]
    tag: String,
    /// Print what would be applied, and do nothing; needs no cluster
    #[arg(long)]
    dry_run: bool,
    /// Install even where `weft check` finds errors, or over what Helm installed, whose values are then the defaults
    #[arg(long)]
    force: bool,
    /// Do not wait until all runs
    #[arg(long)]
    no_wait: bool,
    /// How long each of weft-control and weft-node may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    wait_seconds: u64,
}

pub(super) async fn run(arguments: &Arguments) -> Result<()> {
    let images = Images { registry: arguments.registry.clone(), tag: arguments.tag.clone() };
    let text = manifest::text(&images)?;
    if arguments.dry_run {
        return crate::write(&text);
    }
    let cluster = arguments.target.connect().await?;
    tell!("cluster {}", cluster.server);
    into(&cluster, arguments, &text).await
}

/// Brings the manifest into a cluster.
pub(super) async fn into(cluster: &Cluster, arguments: &Arguments, text: &str) -> Result<()> {
    preflight(cluster, arguments.force).await?;
    let objects = manifest::objects(text)?;
    let mut rest = Vec::new();
    for object in objects {
        match kind(&object) {
            "Deployment" | "DaemonSet" => rest.push(object),
            "CustomResourceDefinition" => {
                apply(cluster, &object).await?;
                served(cluster, name(&object)).await?;
            }
            _ => apply(cluster, &object).await?,
        }
    }
    let wait_max = Duration::from_secs(arguments.wait_seconds);
    for (workload, of_kind) in [(Workload::Control, "Deployment"), (Workload::Node, "DaemonSet")] {
        for object in rest.iter().filter(|object| kind(object) == of_kind) {
            apply(cluster, object).await?;
        }
        if !arguments.no_wait {
            readiness::follow(cluster, workload, wait_max).await?;
        }
    }
    if !arguments.no_wait {
        tell!(
            "Weft {} is installed. Bring a namespace into the mesh: kubectl label namespace <name> weft.dev/mesh=enabled",
            arguments.tag
        );
    }
    Ok(())
}

/// What would go wrong is said before anything is changed.
async fn preflight(cluster: &Cluster, force: bool) -> Result<()> {
    let findings = check::before_install(cluster).await?;
    for finding in findings.iter().filter(|finding| finding.level != Level::Ok) {
        tell!("{finding}");
    }
    let errors = findings.iter().filter(|finding| finding.level == Level::Error).count();
    if errors > 0 && !force {
        bail!(
            "nothing was installed: {errors} of the findings above are errors (--force installs nevertheless)"
        );
    }
    Ok(())
}

async fn apply(cluster: &Cluster, object: &DynamicObject) -> Result<()> {
    let resource = manifest::resource(object)?;
    let api: Api<DynamicObject> = match object.metadata.namespace.as_deref() {
        Some(namespace) => Api::namespaced_with(cluster.client.clone(), namespace, &resource),
        None => Api::all_with(cluster.client.clone(), &resource),
    };
    let shown = format!("{} {}", kind(object), name(object));
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    api.patch(name(object), &parameters, &Patch::Apply(object)).await.doing(&format!("apply {shown}"))?;
    tell!("applied {shown}");
    Ok(())
}

/// Waits until a definition is served: what uses it would fail before.
async fn served(cluster: &Cluster, definition: &str) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    let started = Instant::now();
    loop {
        let found =
            api.get(definition).await.doing(&format!("read CustomResourceDefinition {definition}"))?;
        let conditions = found.status.and_then(|status| status.conditions).unwrap_or_default();
        if conditions.iter().any(|c| c.type_ == "Established" && c.status == "True") {
            return Ok(());
        }
        if started.elapsed() > DEFINITION_WAIT_MAX {
            let said = conditions.into_iter().filter(|c| c.status == "False").filter_map(|c| c.message);
            bail!("the API server does not serve {definition}: {}", said.collect::<Vec<_>>().join("; "));
        }
        tokio::time::sleep(DEFINITION_ASK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake;
    use super::super::release::of_helm;
    use super::*;

    #[test]
    fn what_helm_installed_is_written_over_only_by_force() {
        let done = super::super::block_on(async {
            let (nothing, _) = fake::cluster(fake::bare);
            preflight(&nothing, false).await?;

            let (helms, asked) = fake::cluster(|method, path| {
                let is_node = method == "GET" && path.ends_with("/weft-system/daemonsets/weft-node");
                if is_node { Some(of_helm()) } else { fake::bare(method, path) }
            });
            let findings = check::before_install(&helms).await?;
            let told = findings.iter().find(|finding| finding.level == Level::Error).map(ToString::to_string);
            assert_eq!(
                told.as_deref(),
                Some(
                    "error    Helm: Weft was installed here as Helm's release mesh (namespace ops), whose values `weft install` would set back to \
                     the defaults; let Helm upgrade it, which keeps them: helm upgrade mesh deploy/helm/weft --namespace ops --reset-then-reuse-values"
                )
            );
            let refused = preflight(&helms, false).await.unwrap_err().to_string();
            assert!(refused.contains("nothing was installed: 1 of the findings"), "{refused}");
            preflight(&helms, true).await?;
            // Asking is not doing.
            let asked = asked.lock().unwrap();
            let changes =
                asked.iter().filter(|one| !one.starts_with("GET") && !one.ends_with("accessreviews"));
            assert_eq!(changes.count(), 0);
            Ok(())
        });
        done.unwrap();
    }
}
