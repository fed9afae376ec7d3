//! The etcd of one member: what its pod tells it of TLS, and a handshake with its ports through the API server's pod proxy.

use std::time::Duration;

use etcd_tls_contract::{role::Role, settings::Settings};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use serde_json::Value;

use super::finding::{Finding, unseen};
use crate::{
    controller::client::within,
    injection::{self, Told},
    operator::Right,
    status::{State, proxy},
};

const SEE: &str = "docs/check.md#etcd";
/// How long a port may take. The API server tries an address for 30 s.
const LIMIT: Duration = Duration::from_secs(6);
/// The limit of an answer in bytes: anybody may listen there.
const MAX_ANSWER: usize = 64 * 1024;

/// Looks at the etcd of the pod `name`; nothing is found of a pod that is no member.
pub(super) async fn look(client: &Client, namespace: &str, name: &str) -> Vec<Finding> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pod = match within(api.get_opt(name)).await {
        Ok(Some(pod)) => pod,
        Ok(None) => return Vec::new(),
        Err(error) => return vec![unseen("etcd", Right::new("get", "pods", Some(namespace)), error, SEE)],
    };
    // Of annotations that cannot be read, the pod's own findings tell.
    let Ok(settings) = Settings::parse(&pod.metadata.annotations.clone().unwrap_or_default()) else {
        return Vec::new();
    };
    if !settings.runs_etcd() {
        return Vec::new();
    }
    let address = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
    let told = serde_json::to_value(&pod)
        .map_err(|error| vec![error.to_string()])
        .and_then(|pod| injection::told(&pod, &settings, namespace));
    let next = format!("kubectl -n {namespace} get pod {name} -o yaml");
    let mut findings = Vec::new();
    for told in match told {
        Ok(told) => told,
        Err(why) => return vec![Finding::bad(State::Unknown, "etcd", why.join("; "), next, SEE)],
    } {
        findings.push(of_options(&told, &next));
        let annotated = if told.role == Role::Peer { &settings.peer_url } else { &settings.client_url };
        let port = told.ports.first().copied().or_else(|| annotated.as_ref().filter(|url| url.tls).map(|url| url.port));
        findings.push(match (&address, port) {
            (Some(_), Some(port)) => handshake(client, namespace, name, told.role, port).await,
            (address, _) => {
                let why = if address.is_none() {
                    "the pod has no address yet"
                } else {
                    "no port for others is written in the pod"
                };
                let reason = format!("no handshake was made: {why}");
                Finding::bad(State::Unknown, subject(told.role), reason, &next, SEE)
            }
        });
    }
    findings
}

fn subject(role: Role) -> String {
    format!("{} port", if role == Role::Peer { "peer" } else { "client" })
}

/// What the options say.
fn of_options(told: &Told, next: &str) -> Finding {
    let subject = format!("etcd's options ({})", told.role);
    let container = &told.container;
    if !told.faults.is_empty() {
        let reason = format!("container {container}: {}", told.faults.join("; "));
        return Finding::bad(State::Attention, subject, reason, next, SEE);
    }
    if !told.unseen.is_empty() {
        let reason = format!("container {container}: {}", told.unseen.join("; "));
        return Finding::bad(State::Unknown, subject, reason, next, SEE);
    }
    Finding::ok(subject, "its files, client certificates demanded, and https:// alone", SEE)
}

/// In TLS 1.3 a port refuses a caller after the caller's part of the handshake. The API server may find the connection closed before it
/// reads the alert, and has many words for that. So it is asked again as long as it says neither yes nor no.
const TRIES: usize = 8;
const PAUSE: Duration = Duration::from_millis(100);

/// Has the API server call the port with TLS and no client certificate.
async fn handshake(client: &Client, namespace: &str, name: &str, role: Role, port: u16) -> Finding {
    let subject = subject(role);
    let next = format!("kubectl -n {namespace} logs {name}");
    let unknown = |reason: String| Finding::bad(State::Unknown, &subject, reason, &next, SEE);
    let path = format!("/api/v1/namespaces/{namespace}/pods/https:{name}:{port}/proxy/version");
    let asked = async {
        let mut answer = proxy::get(client, &path, MAX_ANSWER).await;
        for _ in 1..TRIES {
            if !answer.as_ref().is_ok_and(|(_, body)| judge(body).0 == State::Unknown) {
                break;
            }
            tokio::time::sleep(PAUSE).await;
            answer = proxy::get(client, &path, MAX_ANSWER).await;
        }
        answer
    };
    match tokio::time::timeout(LIMIT, asked).await {
        Err(_) => unknown(format!("port {port} gave no answer within {} s", LIMIT.as_secs())),
        Ok(Err(error)) => unknown(error.to_string()),
        Ok(Ok((401 | 403, _))) => {
            let right = Right::new("get", "pods/proxy", Some(namespace));
            let reason = format!("no handshake was made: your account lacks the right to {right}");
            Finding::bad(State::Unknown, subject, reason, right.question(), SEE)
        }
        Ok(Ok((_, body))) => {
            let (state, reason) = judge(&body);
            let reason = format!("port {port}: {reason}");
            if state == State::Ok {
                Finding::ok(subject, reason, SEE)
            } else {
                Finding::bad(state, subject, reason, next, SEE)
            }
        }
    }
}

/// What an answer says of the port: of the API server, whose words end with those of TLS, or of the port itself.
fn judge(body: &str) -> (State, String) {
    let status: Option<Value> = serde_json::from_str(body).ok().filter(|value: &Value| value["kind"] == "Status");
    let Some(status) = status else {
        return (State::Failing, "it answered a caller without a client certificate".to_owned());
    };
    let words = status["message"].as_str().unwrap_or_default();
    // Go names the alert of the other side: `bad certificate` in TLS 1.2, and of old versions in TLS 1.3.
    if ["remote error: tls: certificate required", "remote error: tls: bad certificate"]
        .iter()
        .any(|alert| words.contains(alert))
    {
        (State::Ok, "it speaks TLS, and refuses a caller without a client certificate".to_owned())
    } else if ["HTTP response to HTTPS client", "does not look like a TLS handshake"].iter().any(|s| words.contains(s))
    {
        (State::Failing, "it does not speak TLS".to_owned())
    } else if words.contains("connection refused") {
        (State::Attention, "nothing listens there: etcd is not up, or listens elsewhere".to_owned())
    } else {
        (State::Unknown, format!("the API server's call says neither yes nor no: {words}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_alert_of_a_port_tells_what_it_demands() {
        let status = |words: &str| {
            json!({"kind": "Status", "message": format!("error trying to reach service: {words}")}).to_string()
        };
        for (body, state) in [
            (status("remote error: tls: certificate required"), State::Ok),
            (status("remote error: tls: bad certificate"), State::Ok),
            (status("http: server gave HTTP response to HTTPS client"), State::Failing),
            (status("tls: first record does not look like a TLS handshake"), State::Failing),
            (status("dial tcp 10.0.0.7:2379: connect: connection refused"), State::Attention),
            (status("EOF"), State::Unknown),
            (status("http2: client conn could not be established"), State::Unknown),
            (status("write tcp 10.0.0.1:4->10.0.0.7:2379: write: broken pipe"), State::Unknown),
            ("{\"etcdserver\":\"3.5.0\"}".to_owned(), State::Failing),
            ("404 page not found".to_owned(), State::Failing),
        ] {
            assert_eq!(judge(&body).0, state, "{body}");
        }
    }
}
