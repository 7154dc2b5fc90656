//! An object as the API server sends it, and its reduction to what the index needs. Pure.
//!
//! Nothing of the original is kept but the status of kinds whose status Weft writes.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::api::ApiResource;
use kube::core::NamespaceResourceScope;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use weft_proto::identity::NamespacedName;

use super::kinds::Watched;
use crate::source::kinds::{self, Parsed, STATIC_HASH, STATIC_MIRROR};
use crate::source::manifest::Document;
use crate::source::object::{Kind, Object, ObjectKey};
use crate::source::subjects::Subject;

/// Any object: never refused, so that one that is malformed cannot stop a list.
#[derive(Debug, Clone)]
pub(super) struct Raw {
    metadata: ObjectMeta,
    value: Value,
}

fn is_needed(annotation: &str) -> bool {
    annotation.starts_with("weft.dev/") || matches!(annotation, STATIC_HASH | STATIC_MIRROR)
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut value = Value::deserialize(deserializer)?;
        if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
            if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
                annotations.retain(|name, _| is_needed(name));
            }
        }
        let metadata = value.get("metadata").map(ObjectMeta::deserialize);
        Ok(Self { metadata: metadata.and_then(Result::ok).unwrap_or_default(), value })
    }
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = NamespaceResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }
    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }
    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }
    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Raw {
    pub(super) fn of_metadata(metadata: &ObjectMeta) -> Self {
        let value = serde_json::json!({ "metadata": metadata });
        Raw::deserialize(value).unwrap_or(Self { metadata: ObjectMeta::default(), value: Value::Null })
    }
}

/// What became of an object.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Item {
    pub(super) key: ObjectKey,
    pub(super) uid: String,
    /// None: not of interest. Err: why it cannot be used.
    pub(super) outcome: Result<Option<Object>, String>,
    pub(super) warnings: Vec<String>,
    pub(super) subject: Option<Subject>,
}

/// None: without a name that an object can have.
pub(super) fn key_of(kind: Kind, metadata: &ObjectMeta) -> Option<ObjectKey> {
    let name = metadata.name.as_deref()?;
    let namespace = metadata.namespace.as_deref().unwrap_or(name);
    Some(ObjectKey { kind, id: NamespacedName::new(namespace, name).ok()? })
}

pub(super) fn reduce(watched: &Watched, raw: Raw) -> Option<Item> {
    let key = key_of(watched.kind, &raw.metadata)?;
    let Raw { metadata, mut value } = raw;
    let resource = watched.resource();
    // The items of a list do not say what they are.
    if let Some(object) = value.as_object_mut() {
        object.insert("apiVersion".to_owned(), resource.api_version.clone().into());
        object.insert("kind".to_owned(), resource.kind.clone().into());
    }
    let mut warnings = Vec::new();
    let read = {
        let mut warn = |_, message| warnings.push(message);
        kinds::read(&Document::live(&value), &resource.api_version, &resource.kind, &mut warn)
    };
    let outcome = match read {
        Ok(Some(Parsed::Object(object))) => Ok(Some(object)),
        Ok(_) => Ok(None),
        Err(refused) => Err(refused.message),
    };
    let subject =
        watched.has_status.then(|| subject(&metadata, &mut value, outcome.as_ref().err(), &warnings));
    Some(Item { key, uid: metadata.uid.unwrap_or_default(), outcome, warnings, subject })
}

fn subject(
    metadata: &ObjectMeta,
    value: &mut Value,
    refused: Option<&String>,
    warnings: &[String],
) -> Subject {
    let listed = |at: &str| value.pointer(at).and_then(Value::as_array).cloned().unwrap_or_default();
    let rules = listed("/spec/rules");
    let of_rules = |field| rules.iter().filter_map(move |rule: &Value| rule.get(field)?.as_array()).flatten();
    let mirrors = of_rules("filters").filter_map(|filter| filter.pointer("/requestMirror/backendRef"));
    let backends = of_rules("backendRefs").chain(mirrors);
    let reference = |reference: &Value| {
        let mut reference = reference.clone();
        if let Some(object) = reference.as_object_mut() {
            object.remove("filters");
        }
        reference
    };
    Subject {
        uid: metadata.uid.clone().unwrap_or_default(),
        generation: metadata.generation.unwrap_or_default(),
        resource_version: metadata.resource_version.clone().unwrap_or_default(),
        refused: refused.cloned(),
        warnings: warnings.to_vec(),
        parents: listed("/spec/parentRefs"),
        backends: backends.map(reference).collect(),
        status: value.get_mut("status").map(Value::take).unwrap_or_default(),
    }
}
