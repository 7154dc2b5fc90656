//! Neighbouring versions of weft-node and weft-control talk to each other in every upgrade, so what a field is does not change: not its
//! number, type or name, and a number is not used again. `fields.txt` has them all, as they were agreed.
//!
//! What may be added, and how, is said at the top of `weft/v1/resources.proto`.

#![expect(clippy::unwrap_used, reason = "all of this file is test code")]

use std::collections::BTreeSet;

use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, ServiceDescriptorProto,
};

const AGREED: &str = include_str!("fields.txt");
const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/weft.v1.binpb"));

fn field(of: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let kind = match field.r#type() {
        Type::Message | Type::Enum => field.type_name().trim_start_matches(".weft.v1.").to_owned(),
        plain => plain.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    let many = if field.label() == Label::Repeated { "repeated " } else { "" };
    let one = field.oneof_index.map(|index| of.oneof_decl[usize::try_from(index).unwrap()].name().to_owned());
    let one = one.map(|name| format!(" of {name}")).unwrap_or_default();
    format!("{} {many}{kind} {}{one}", field.number(), field.name())
}

fn message(path: &str, message: &DescriptorProto, lines: &mut BTreeSet<String>) {
    let path = format!("{path}{}", message.name());
    lines.extend(message.field.iter().map(|one| format!("{path} {}", field(message, one))));
    message.enum_type.iter().for_each(|one| values(&format!("{path}."), one, lines));
    message.nested_type.iter().for_each(|one| self::message(&format!("{path}."), one, lines));
}

fn values(path: &str, of: &EnumDescriptorProto, lines: &mut BTreeSet<String>) {
    let path = format!("{path}{}", of.name());
    lines.extend(of.value.iter().map(|value| format!("{path} {} {}", value.number(), value.name())));
}

fn methods(of: &ServiceDescriptorProto, lines: &mut BTreeSet<String>) {
    for method in &of.method {
        let stream = |streams| if streams { "stream " } else { "" };
        let plain = |name: &str| name.trim_start_matches(".weft.v1.").to_owned();
        lines.insert(format!(
            "{} {}({}{}) returns ({}{})",
            of.name(),
            method.name(),
            stream(method.client_streaming()),
            plain(method.input_type()),
            stream(method.server_streaming()),
            plain(method.output_type()),
        ));
    }
}

#[test]
fn what_was_agreed_on_stays() {
    let mut now = BTreeSet::new();
    for file in FileDescriptorSet::decode(DESCRIPTORS).unwrap().file {
        assert_eq!(file.package(), "weft.v1");
        file.message_type.iter().for_each(|one| message("", one, &mut now));
        file.enum_type.iter().for_each(|one| values("", one, &mut now));
        file.service.iter().for_each(|one| methods(one, &mut now));
    }
    let agreed: BTreeSet<String> = AGREED.lines().map(str::to_owned).collect();
    let (gone, new): (Vec<_>, Vec<_>) =
        (agreed.difference(&now).collect(), now.difference(&agreed).collect());
    assert!(gone.is_empty(), "older builds speak of these, which must stay as they are: {gone:#?}");
    assert!(new.is_empty(), "add to tests/fields.txt, once it is agreed: {new:#?}");
}
