//! People who have the cluster's own roles `view`, `edit` or `admin` in a namespace may do so with its policies, and nobody else.

use k8s_openapi::api::authorization::v1::SubjectAccessReview;
use kube::Client;
use kube::api::{Api, PostParams};

use super::api_server::ApiServer;
use super::cluster::apply;
use super::control::until;
use super::identity::namespace;
use super::rights::rendered;

const KINDS: [&str; 2] = ["authorizationpolicies", "trafficpolicies"];

async fn may(client: &Client, user: &str, verb: &str, resource: &str, place: &str) -> bool {
    let attributes =
        serde_json::json!({"namespace": place, "group": "weft.dev", "resource": resource, "verb": verb});
    let review = serde_json::json!({"spec": {"user": user, "resourceAttributes": attributes}});
    let review: SubjectAccessReview = serde_json::from_value(review).unwrap();
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    reviews.create(&PostParams::default(), &review).await.unwrap().status.unwrap().allowed
}

#[tokio::test]
async fn the_clusters_own_roles_take_up_the_rights_on_policies_and_nobody_else_has_them() {
    let server = ApiServer::start(&[]).await;
    let _controllers = server.controllers("clusterrole-aggregation-controller");
    let client = server.client().await;
    namespace(&client, "shop", false).await;
    namespace(&client, "other", false).await;
    for role in ["view", "edit", "admin"] {
        let binding = format!(
            "{{apiVersion: rbac.authorization.k8s.io/v1, kind: RoleBinding, metadata: {{name: {role}, namespace: shop}}, roleRef: {{apiGroup: \
             rbac.authorization.k8s.io, kind: ClusterRole, name: {role}}}, subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, \
             name: {role}er}}]}}"
        );
        apply(&client, &binding).await.unwrap();
    }
    let roles = rendered(&["ClusterRole"]);
    let roles: Vec<_> = roles.iter().filter(|role| role.contains("/aggregate-to-")).collect();
    assert_eq!(roles.len(), 2, "{roles:?}");
    for role in roles {
        apply(&client, role).await.unwrap();
    }
    // A controller puts the roles together, and the authorizer hears of it: each right by itself.
    for kind in KINDS {
        for (user, verbs) in [
            ("viewer", &["get", "list", "watch"][..]),
            ("editer", &["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"]),
            ("adminer", &["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"]),
        ] {
            for verb in verbs {
                until(&format!("{user}: {verb} {kind}"), || async {
                    may(&client, user, verb, kind, "shop").await.then_some(())
                })
                .await;
                assert!(!may(&client, user, verb, kind, "other").await, "{user}: {verb} {kind} elsewhere");
                assert!(!may(&client, "nobody", verb, kind, "shop").await, "{verb} {kind} without a role");
            }
        }
        for verb in ["create", "update", "patch", "delete", "deletecollection"] {
            assert!(!may(&client, "viewer", verb, kind, "shop").await, "a viewer may {verb} {kind}");
        }
        let status = format!("{kind}/status");
        assert!(!may(&client, "adminer", "patch", &status, "shop").await, "status is weft-control's");
    }
}
