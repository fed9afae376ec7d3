//! Requests as kubectl prints them: the `Table` that a server renders, and the plain objects of each version.

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use serde_json::{Value, json};

use crate::standalone::{store::StoredRequest, version::Version};

/// How the caller wants objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As they are.
    Object,
    /// As rows of a Table (`as=Table`).
    Table(Include),
}

/// The part of the object in a row (`includeObject`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// Its metadata: the default.
    Metadata,
    /// All of it.
    Object,
}

/// Chooses the form by the `Accept` header: the first that can be answered. `None`: nothing of it can.
pub fn negotiate(accept: &str, include: Include) -> Option<Form> {
    if accept.trim().is_empty() {
        return Some(Form::Object);
    }
    accept.split(',').find_map(|range| {
        let mut parts = range.split(';').map(str::trim);
        if !matches!(parts.next()?, "application/json" | "application/*" | "*/*") {
            return None;
        }
        let mut wanted = None;
        let mut group = None;
        let mut version = None;
        for (key, value) in parts.filter_map(|p| p.split_once('=')) {
            match key {
                "as" => wanted = Some(value),
                "g" => group = Some(value),
                "v" => version = Some(value),
                "q" if value.trim_start_matches(['0', '.']).is_empty() => return None,
                _ => {}
            }
        }
        match (wanted, group, version) {
            (None, _, _) => Some(Form::Object),
            (Some("Table"), Some("meta.k8s.io"), Some("v1")) => Some(Form::Table(include)),
            _ => None,
        }
    })
}

/// One request as JSON.
pub fn one(stored: &StoredRequest, version: Version, form: Form, now: Timestamp) -> Vec<u8> {
    event_object(stored, version, form, now, true)
}

/// One request in an event; a Table's columns are said in the first event alone.
pub fn event_object(stored: &StoredRequest, version: Version, form: Form, now: Timestamp, columns: bool) -> Vec<u8> {
    match form {
        Form::Object => stored.parts(version).concat(),
        Form::Table(include) => {
            let metadata = json!({ "resourceVersion": stored.revision.to_string() });
            table(vec![row(stored, version, include, now)], metadata, columns).to_string().into_bytes()
        }
    }
}

/// The beginning and the end of a list, between which its items stand, divided by commas.
pub fn frame(metadata: &Value, version: Version, form: Form) -> (String, &'static str) {
    match form {
        Form::Object => {
            let (kind, version) = ("CertificateSigningRequestList", version.api_version());
            (format!(r#"{{"kind":"{kind}","apiVersion":"{version}","metadata":{metadata},"items":["#), "]}")
        }
        Form::Table(_) => {
            let columns = columns();
            let head = format!(
                r#"{{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{metadata},"columnDefinitions":{columns},"rows":["#
            );
            (head, "]}")
        }
    }
}

/// One item of a list.
pub fn item(stored: &StoredRequest, version: Version, form: Form, now: Timestamp) -> [Bytes; 2] {
    match form {
        Form::Object => stored.parts(version),
        Form::Table(include) => [Bytes::from(row(stored, version, include, now).to_string()), Bytes::new()],
    }
}

/// Bytes of one item of a list.
pub fn size(stored: &StoredRequest, version: Version, form: Form, now: Timestamp) -> usize {
    match form {
        Form::Object => stored.size(version),
        Form::Table(_) => item(stored, version, form, now).iter().map(Bytes::len).sum(),
    }
}

/// A Table of no rows, as a bookmark carries it.
pub fn empty_table(metadata: Value) -> Value {
    table(Vec::new(), metadata, false)
}

fn table(rows: Vec<Value>, metadata: Value, with_columns: bool) -> Value {
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": metadata,
        "columnDefinitions": if with_columns { columns() } else { Value::Null },
        "rows": rows,
    })
}

fn columns() -> Value {
    let column = |name: &str, format: &str, description: &str, priority: u32| json!({ "name": name, "type": "string", "format": format, "description": description, "priority": priority });
    json!([
        column("Name", "name", "The request's name.", 0),
        column("Age", "", "The time since the request was made.", 0),
        column("SignerName", "", "The requested signer.", 0),
        column("Requestor", "", "The requester.", 0),
        column("RequestedDuration", "", "The requested lifetime.", 0),
        column("Condition", "", "The decision, and whether a certificate was issued.", 0),
    ])
}

fn row(stored: &StoredRequest, version: Version, include: Include, now: Timestamp) -> Value {
    let csr = &stored.csr();
    let age = csr
        .metadata
        .creation_timestamp
        .as_ref()
        .map_or_else(|| "<unknown>".to_owned(), |t| human(now.as_second().saturating_sub(t.0.as_second())));
    let duration = csr.spec.expiration_seconds.map_or_else(|| "<none>".to_owned(), |s| human(i64::from(s)));
    let mut row = json!({
        "cells": [stored.name(), age, csr.spec.signer_name, stored.owner(), duration, condition(csr)],
    });
    match include {
        Include::None => {}
        Include::Object => row["object"] = version.object(csr),
        Include::Metadata => {
            row["object"] = json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": csr.metadata,
            });
        }
    }
    row
}

/// The condition in kubectl's words: `Approved,Issued`.
fn condition(csr: &CertificateSigningRequest) -> String {
    let status = csr.status.as_ref();
    let has = |kind: &str| status.is_some_and(|s| s.conditions.iter().flatten().any(|c| c.type_ == kind));
    let mut words = vec![if has("Denied") {
        "Denied"
    } else if has("Approved") {
        "Approved"
    } else {
        "Pending"
    }];
    if has("Failed") {
        words.push("Failed");
    }
    if status.is_some_and(|s| s.certificate.as_ref().is_some_and(|c| !c.0.is_empty())) {
        words.push("Issued");
    }
    words.join(",")
}

/// A span of time in kubectl's words: two units where the larger is small.
fn human(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |large: i64, l: &str, small: i64, s: &str| {
        if small == 0 { format!("{large}{l}") } else { format!("{large}{l}{small}{s}") }
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => pair(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn kubectl_and_client_go_get_what_they_prefer_of_what_there_is() {
        let table = Form::Table(Include::Metadata);
        for (accept, form) in [
            ("", Some(Form::Object)),
            ("application/json, */*", Some(Form::Object)),
            ("application/vnd.kubernetes.protobuf,application/json", Some(Form::Object)),
            ("application/vnd.kubernetes.protobuf, */*", Some(Form::Object)),
            ("application/vnd.kubernetes.protobuf", None),
            ("application/cbor", None),
            ("text/html", None),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json",
                Some(table),
            ),
            ("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", Some(Form::Object)),
            (
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
                Some(Form::Object),
            ),
            ("application/json;q=0, application/vnd.kubernetes.protobuf", None),
        ] {
            assert_eq!(negotiate(accept, Include::Metadata), form, "{accept}");
        }
    }

    #[test]
    fn spans_read_as_kubectl_writes_them() {
        for (seconds, text) in [
            (-5, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (599, "9m59s"),
            (600, "10m"),
            (3600, "60m"),
            (10_800, "3h"),
            (10_860, "3h1m"),
            (86_400, "24h"),
            (172_800, "2d"),
            (176_400, "2d1h"),
            (31_536_000, "365d"),
        ] {
            assert_eq!(human(seconds), text, "{seconds}");
        }
    }
}
