//! Events on Pods and Namespaces: they have no status of Weft's in which a wrong label or annotation could be told.
//!
//! One for each thing that is wrong, named after the object, its UID and the words: whichever replica writes it, however often it lists
//! or starts, the API server takes it once, until it forgets it (its `--event-ttl`, an hour by default). That also needs no
//! right but `create`.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use weft_proto::convert::fnv1a_64;

use super::{MANAGER, RoundError, bounded};
use crate::source::ObjectKey;
use crate::source::subjects::Remark;

/// Of one round, beside its writes of status; the rest waits for the next.
const EVENTS_OF_A_ROUND_MAX: usize = 10;
/// Fewer than a round's: so that each round gets done with an object, however many wrong labels somebody gives it.
const EVENTS_OF_AN_OBJECT_MAX: usize = 5;
/// The API takes 1024 bytes, and a character has four at most.
const NOTE_CHARS_MAX: usize = 250;
/// Of a name in the API.
const NAME_BYTES_MAX: usize = 253;
const REASON: &str = "InvalidMetadata";
/// What Weft was doing.
const ACTION: &str = "Read";

pub(super) struct Events {
    client: Client,
    /// This replica.
    instance: String,
    told: BTreeMap<ObjectKey, Arc<Remark>>,
    /// The API server takes none, and that is in the log.
    refused: bool,
}

impl Events {
    pub(super) fn new(client: Client, instance: String) -> Self {
        Self { client, instance, told: BTreeMap::new(), refused: false }
    }

    /// Another replica tells from now on.
    pub(super) fn yield_to_another(&mut self) {
        self.told.clear();
    }

    /// Tells what was not told yet.
    pub(super) async fn round(
        &mut self,
        remarks: BTreeMap<ObjectKey, Arc<Remark>>,
    ) -> Result<(), RoundError> {
        self.told.retain(|key, _| remarks.contains_key(key));
        let mut written = 0;
        for (key, remark) in remarks {
            let before = self.told.get(&key).cloned();
            for warning in untold(before.as_deref(), &remark) {
                if written == EVENTS_OF_A_ROUND_MAX {
                    return Ok(());
                }
                written += 1;
                self.write(&key, &remark.uid, warning).await?;
            }
            self.told.insert(key, remark);
        }
        Ok(())
    }

    async fn write(&mut self, key: &ObjectKey, uid: &str, warning: &str) -> Result<(), RoundError> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &key.id.namespace);
        let event = event(key, uid, warning, &self.instance, Timestamp::now());
        let answer = match bounded(api.create(&PostParams::default(), &event)).await {
            Err(RoundError::Answer(kube::Error::Api(answer))) => answer,
            Err(error) => return Err(error),
            Ok(_) => {
                self.refused = false;
                return Ok(());
            }
        };
        match answer.code {
            // Told before, or the namespace went meanwhile.
            409 | 404 => Ok(()),
            429 | 500.. => Err(RoundError::Answer(kube::Error::Api(answer))),
            // A right is missing, or the namespace is ending: to ask again would not help.
            _ => {
                if !std::mem::replace(&mut self.refused, true) {
                    tracing::warn!(object = %key, error = %answer.message, "the API server takes no event");
                }
                Ok(())
            }
        }
    }
}

/// Pure. What is to be told of an object now.
fn untold<'a>(before: Option<&Remark>, now: &'a Remark) -> impl Iterator<Item = &'a String> {
    let told = before.filter(|before| before.uid == now.uid).map_or(&[][..], |before| &before.warnings);
    now.warnings.iter().filter(|warning| !told.contains(warning)).take(EVENTS_OF_AN_OBJECT_MAX)
}

/// Pure. A Namespace's events are within it, where its users look.
fn event(key: &ObjectKey, uid: &str, warning: &str, instance: &str, now: Timestamp) -> Event {
    let namespace = Some(key.id.namespace.to_string());
    let suffix = format!(".{:016x}", fnv1a_64(format!("{uid}\n{warning}").as_bytes()));
    // Names are ASCII.
    let most = key.id.name.len().min(NAME_BYTES_MAX - suffix.len());
    let stem = key.id.name[..most].trim_end_matches(['.', '-']);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{stem}{suffix}")),
            namespace: namespace.clone(),
            ..ObjectMeta::default()
        },
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some(key.kind.name().to_owned()),
            namespace,
            name: Some(key.id.name.to_string()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        }),
        type_: Some("Warning".to_owned()),
        reason: Some(REASON.to_owned()),
        action: Some(ACTION.to_owned()),
        note: Some(warning.chars().take(NOTE_CHARS_MAX).collect()),
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(MANAGER.to_owned()),
        reporting_instance: Some(instance.to_owned()),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::object::Kind;

    fn named(name: &str, uid: &str, warning: &str) -> Event {
        let key = ObjectKey { kind: Kind::Pod, id: format!("shop/{name}").parse().unwrap() };
        event(&key, uid, warning, "replica", Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn what_was_not_told_of_this_object_is_told_and_no_more_than_a_round_gets_done() {
        let remark = |uid: &str, warnings: &[&str]| Remark {
            uid: uid.to_owned(),
            warnings: warnings.iter().map(ToString::to_string).collect(),
        };
        let told = |before: Option<&Remark>, now: &Remark| untold(before, now).cloned().collect::<Vec<_>>();
        let (first, second) = (remark("u", &["a", "b"]), remark("u", &["b", "c"]));
        assert_eq!(told(None, &first), ["a", "b"]);
        assert_eq!(told(Some(&first), &second), ["c"]);
        assert_eq!(told(Some(&first), &remark("another", &["a"])), ["a"]);
        let many: Vec<String> = (0..100).map(|i| i.to_string()).collect();
        let many = Remark { uid: "u".to_owned(), warnings: many };
        assert!(untold(None, &many).count() < EVENTS_OF_A_ROUND_MAX);
    }

    #[test]
    fn an_event_has_one_name_for_one_thing_that_is_wrong_with_one_object() {
        let name = |uid: &str, warning: &str| named("web", uid, warning).metadata.name.unwrap();
        let one = name("u1", "label a");
        assert_eq!(one, name("u1", "label a"));
        assert!(one.starts_with("web.") && one != name("u2", "label a") && one != name("u1", "label b"));
    }

    #[test]
    fn long_names_and_words_are_cut_to_what_the_api_takes() {
        let long = format!("{}.{}", "a".repeat(235), "b".repeat(17));
        let told = named(&long, "u", &"\u{1f980}".repeat(400));
        let name = told.metadata.name.unwrap();
        assert!(name.len() <= NAME_BYTES_MAX && name.starts_with("aaa") && !name.contains(".."), "{name}");
        assert!(told.note.unwrap().len() <= 1024);
        assert_eq!(told.regarding.unwrap().name.unwrap(), long);
    }
}
