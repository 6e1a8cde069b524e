//! Compiles our own `.proto` files and merges their descriptors with those that the package of
//! `envoy-types` ships, without comments and options: what the JSON conversion needs at run time.

#[path = "build/constraints.rs"]
mod constraints;

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost::Message;
use prost_reflect::DescriptorPool;
use protox::prost_reflect::prost_types::{
    FileDescriptorSet, field_descriptor_proto::Type as FieldType,
};

const OURS: &[&str] = &[
    "udpa_typed_struct.proto",
    "xds_typed_struct.proto",
    "ip_matcher.proto",
    "server_name_matcher.proto",
    "cel_matcher.proto",
    "istio_alpn.proto",
    "istio_stats.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed=src/constraints/table.rs");
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let envoy = envoy_types_folder()?;

    let includes = [
        PathBuf::from("proto"),
        envoy.join("proto/xds"),
        envoy.join("proto/cel-spec/proto"),
        envoy.join("proto/googleapis"),
        envoy.join("proto/protoc-gen-validate"),
    ];
    let mut compiled = protox::Compiler::new(includes)?
        .include_source_info(false)
        .include_imports(true)
        .open_files(OURS)?
        .file_descriptor_set();
    // The generator wants to see the imported messages too, and skips what `extern_path` names.
    let mut config = prost_build::Config::new();
    for message in [
        "Matcher",
        "RegexMatcher",
        "StringMatcher",
        "ListStringMatcher",
    ] {
        config.extern_path(
            format!(".xds.type.matcher.v3.{message}"),
            format!("::envoy_types::pb::xds::r#type::matcher::v3::{message}"),
        );
    }
    config
        .extern_path(".validate", "::envoy_types::pb::validate")
        .extern_path(".xds.annotations", "::envoy_types::pb::xds::annotations")
        .enable_type_names()
        .type_name_domain(["."], "type.googleapis.com")
        .compile_well_known_types()
        .extern_path(".google.protobuf", "::envoy_types::pb::google::protobuf")
        .extern_path(".xds.core.v3", "::envoy_types::pb::xds::core::v3")
        .extern_path(".cel.expr", "::envoy_types::pb::cel::expr")
        .extern_path(
            ".google.api.expr.v1alpha1",
            "::envoy_types::pb::google::api::expr::v1alpha1",
        )
        .extern_path(
            ".xds.type.v3.CelExpression",
            "::envoy_types::pb::xds::r#type::v3::CelExpression",
        )
        .extern_path(
            ".xds.type.v3.CelExtractString",
            "::envoy_types::pb::xds::r#type::v3::CelExtractString",
        )
        .extern_path(
            ".xds.type.matcher.v3.Matcher.OnMatch",
            "::envoy_types::pb::xds::r#type::matcher::v3::matcher::OnMatch",
        )
        .include_file("protos.rs")
        .compile_fds(compiled.clone())?;
    compiled.file.retain(|f| OURS.contains(&f.name()));

    let types = fs::read(envoy.join("src/generated/types.bin"))?;
    let pool = DescriptorPool::decode(types.as_slice())?;
    fs::write(out.join("sensitive.txt"), sensitive_fields(&pool))?;
    fs::write(out.join("constraints.txt"), constraints::table(&pool)?)?;

    // Extension options (validation rules above all) are lost here on purpose, and the rest after them:
    // at run time only names, numbers and kinds are asked for.
    let mut all = FileDescriptorSet::decode(types.as_slice())?;
    all.file.extend(compiled.file);
    for file in &mut all.file {
        file.source_code_info = None;
        file.service.clear();
        file.extension.clear();
        file.options = None;
        file.message_type.iter_mut().for_each(strip);
        file.enum_type.iter_mut().for_each(strip_enum);
    }
    let bytes = all.encode_to_vec();
    DescriptorPool::decode(bytes.as_slice())?;
    fs::write(out.join("descriptors.bin"), bytes)?;
    Ok(())
}

fn strip(message: &mut protox::prost_reflect::prost_types::DescriptorProto) {
    message.extension.clear();
    // `map_entry` is the one option that changes the meaning of a message.
    if !message.options.as_ref().is_some_and(|o| o.map_entry()) {
        message.options = None;
    }
    for field in &mut message.field {
        if field.r#type() != FieldType::Enum || field.default_value.is_none() {
            field.options = None;
        }
    }
    message.oneof_decl.iter_mut().for_each(|o| o.options = None);
    message.enum_type.iter_mut().for_each(strip_enum);
    message.nested_type.iter_mut().for_each(strip);
}

fn strip_enum(e: &mut protox::prost_reflect::prost_types::EnumDescriptorProto) {
    if !e.options.as_ref().is_some_and(|o| o.allow_alias()) {
        e.options = None;
    }
    e.value.iter_mut().for_each(|v| v.options = None);
}

/// The fields marked `(udpa.annotations.sensitive)`, one full name a line, sorted.
fn sensitive_fields(pool: &DescriptorPool) -> String {
    let mut names = Vec::new();
    if let Some(mark) = pool.get_extension_by_name("udpa.annotations.sensitive") {
        for message in pool.all_messages() {
            for field in message.fields() {
                if field.options().get_extension(&mark).as_bool() == Some(true) {
                    names.push(field.full_name().to_owned());
                }
            }
        }
    }
    names.sort();
    names.join("\n")
}

/// Where cargo unpacked `envoy-types`. The crate has no `links` key, so cargo is asked; nothing is
/// downloaded.
fn envoy_types_folder() -> Result<PathBuf, Box<dyn Error>> {
    let output = Command::new(env::var("CARGO")?)
        .args(["metadata", "--offline", "--format-version", "1"])
        .args(["--filter-platform", &env::var("TARGET")?])
        .current_dir(env::var("CARGO_MANIFEST_DIR")?)
        .output()?;
    if !output.status.success() {
        return Err(format!(
            "cargo metadata: {}",
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    metadata
        .get("packages")
        .and_then(|p| p.as_array())
        .into_iter()
        .flatten()
        .find(|p| p.get("name").and_then(|n| n.as_str()) == Some("envoy-types"))
        .and_then(|p| p.get("manifest_path")?.as_str())
        .and_then(|p| Path::new(p).parent())
        .map(Path::to_path_buf)
        .ok_or_else(|| "cargo metadata names no package envoy-types".into())
}
