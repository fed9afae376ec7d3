//! The URLs that the members register and the protocols of their ports. Each look has a time limit; a failure is a fact, too.

use std::{collections::BTreeMap, fmt::Write as _, io, sync::Arc, time::Duration};

use etcd_tls_contract::{endpoint::Endpoint, invalid_value::InvalidValue};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::plan::{Member, Port, Scheme, Spoken};

/// How long one look may take. etcd answers an unhealthy member's /health within 7 s.
const LIMIT: Duration = Duration::from_secs(8);
/// Most bytes of an answer that are read; /metrics of a member is some 100 KiB.
const MAX_ANSWER: u64 = 4 * 1024 * 1024;

/// How https URLs are asked.
pub(super) struct Tls(TlsConnector);

impl Tls {
    pub(super) fn new(config: rustls::ClientConfig) -> Self {
        Self(TlsConnector::from(Arc::new(config)))
    }
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    members: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    #[serde(rename = "ID")]
    id: String,
    #[serde(default)]
    name: String,
    #[serde(rename = "peerURLs", default)]
    peer_urls: Vec<String>,
    #[serde(rename = "clientURLs", default)]
    client_urls: Vec<String>,
}

/// The cluster cannot be looked at. The text gives the reason, for each endpoint one.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct LookError(String);

/// The members as the cluster lists them, with what each of their ports speaks.
///
/// # Errors
/// No endpoint answers, with each one's reason.
pub(super) async fn members(endpoints: &[Endpoint], tls: Option<&Tls>) -> Result<Vec<Member>, LookError> {
    let mut reasons = String::new();
    for endpoint in endpoints {
        match ask(endpoint, "POST", "/v3/cluster/member/list", tls).await.and_then(|body| list(&body)) {
            Ok(listed) => {
                let mut members = Vec::new();
                for member in listed {
                    members.push(look(member, tls).await?);
                }
                return Ok(members);
            }
            Err(error) => {
                // Writing to a String does not fail.
                let _ = write!(reasons, "\n  {endpoint}: {error}");
            }
        }
    }
    Err(LookError(format!("no endpoint lists the members:{reasons}")))
}

fn list(body: &str) -> Result<Vec<Listed>, String> {
    let list: List = serde_json::from_str(body).map_err(|e| format!("the answer is no member list: {e}"))?;
    if list.members.is_empty() {
        return Err("the member list is empty".to_owned());
    }
    // etcd orders them by an id that is a hash.
    let mut members = list.members;
    members.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(members)
}

async fn look(listed: Listed, tls: Option<&Tls>) -> Result<Member, LookError> {
    let id: u64 = listed.id.parse().map_err(|_| LookError(format!("member id {:?} is no number", listed.id)))?;
    let mut member =
        Member { id: format!("{id:x}"), name: listed.name, clients: Vec::new(), peers: Vec::new(), reaches: None };
    for url in listed.client_urls {
        let endpoint: Endpoint = match url.parse() {
            Ok(endpoint) => endpoint,
            Err(error) => {
                member.clients.push(unread(url, &error));
                continue;
            }
        };
        let health = ask(&endpoint, "GET", "/health", tls).await.and_then(|body| {
            if body.contains(r#""health":"true""#) { Ok(()) } else { Err(format!("is not healthy: {body}")) }
        });
        if health.is_ok() && member.reaches.is_none() {
            member.reaches = ask(&endpoint, "GET", "/metrics", tls).await.ok().map(|text| active_peers(&text));
        }
        let spoken = match &health {
            Ok(()) => Scheme::of(&url).map_or(Spoken::Unknown, Spoken::Is),
            Err(_) => spoken(&endpoint).await,
        };
        member.clients.push(Port { url, spoken, trouble: health.err() });
    }
    for url in listed.peer_urls {
        member.peers.push(match url.parse() {
            Ok(endpoint) => Port { spoken: spoken(&endpoint).await, url, trouble: None },
            Err(error) => unread(url, &error),
        });
    }
    Ok(member)
}

/// A port whose URL cannot be read.
fn unread(url: String, error: &InvalidValue) -> Port {
    Port { url, spoken: Spoken::Unknown, trouble: Some(error.to_string()) }
}

/// `etcd_network_active_peers` of a member: by the other member's id, whether it is reached.
fn active_peers(metrics: &str) -> BTreeMap<String, bool> {
    let line = |line: &str| {
        let rest = line.strip_prefix("etcd_network_active_peers{")?;
        let (labels, value) = rest.split_once('}')?;
        let remote = labels.split("Remote=\"").nth(1)?.split('"').next()?;
        Some((remote.to_owned(), value.trim().parse::<f64>().is_ok_and(|n| n > 0.0)))
    };
    metrics.lines().filter_map(line).collect()
}

async fn dial(endpoint: &Endpoint) -> io::Result<TcpStream> {
    TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await
}

/// One request, its answer's body. HTTP/1.0, so that the end of the connection is the end of the body.
async fn ask(endpoint: &Endpoint, method: &str, path: &str, tls: Option<&Tls>) -> Result<String, String> {
    let asked = async {
        let stream = dial(endpoint).await.map_err(|e| e.to_string())?;
        let authority = endpoint.authority();
        let body = if method == "POST" { "{}" } else { "" };
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: {authority}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = if endpoint.tls {
            let tls = tls.ok_or("give --cacert, --cert and --key to ask it")?;
            let name = ServerName::try_from(endpoint.host.clone()).map_err(|e| e.to_string())?;
            let stream = tls.0.connect(name, stream).await.map_err(|e| format!("TLS: {e}"))?;
            exchange(stream, &request).await
        } else {
            exchange(stream, &request).await
        };
        let answer = answer.map_err(|e| e.to_string())?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("the answer is not HTTP")?;
        match head.split(' ').nth(1) {
            Some("200") => Ok(body.to_owned()),
            _ => Err(format!("{}: {}", head.lines().next().unwrap_or_default(), body.trim())),
        }
    };
    timeout(LIMIT, asked).await.map_err(|_| format!("no answer within {LIMIT:?}"))?
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> io::Result<String> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    match stream.take(MAX_ANSWER).read_to_end(&mut answer).await {
        // Some servers close without a TLS goodbye.
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof && !answer.is_empty() => {}
        read => drop(read?),
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// The protocol of a port. Plain HTTP is answered with HTTP, or by a TLS server with an alert or a 400. etcd's TLS peer port
/// closes the connection without an answer, so a handshake follows if the answer is inconclusive.
async fn spoken(endpoint: &Endpoint) -> Spoken {
    let scheme = match timeout(LIMIT, answers_plain_text(endpoint)).await.ok().flatten() {
        None if timeout(LIMIT, answers_handshake(endpoint)).await.unwrap_or(false) => Some(Scheme::Https),
        scheme => scheme,
    };
    scheme.map_or(Spoken::Unknown, Spoken::Is)
}

async fn answers_plain_text(endpoint: &Endpoint) -> Option<Scheme> {
    let mut stream = dial(endpoint).await.ok()?;
    stream.write_all(b"GET /version HTTP/1.0\r\n\r\n").await.ok()?;
    let mut answer = Vec::new();
    // A TLS server may break the connection off after its alert.
    let _ = stream.take(1024).read_to_end(&mut answer).await;
    recognise(&answer)
}

/// True if the port takes part in a TLS handshake. No CA is trusted, so the handshake ends at the server's certificate, and
/// nothing is sent to it.
async fn answers_handshake(endpoint: &Endpoint) -> bool {
    let Ok(name) = ServerName::try_from(endpoint.host.clone()) else { return false };
    let Ok(stream) = dial(endpoint).await else { return false };
    let config =
        rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    match TlsConnector::from(Arc::new(config)).connect(name, stream).await {
        Ok(_) => true,
        Err(error) => error.get_ref().and_then(|e| e.downcast_ref()).is_some_and(proves_tls),
    }
}

/// True if only a TLS server brings the handshake to this error.
const fn proves_tls(error: &rustls::Error) -> bool {
    use rustls::Error;
    matches!(error, Error::InvalidCertificate(_) | Error::AlertReceived(_) | Error::PeerIncompatible(_))
}

fn recognise(answer: &[u8]) -> Option<Scheme> {
    const ALERT: u8 = 0x15;
    match answer {
        [ALERT, ..] => Some(Scheme::Https),
        _ if answer.starts_with(b"HTTP/1.0 400") && answer.ends_with(b"to an HTTPS server.\n") => Some(Scheme::Https),
        _ if answer.starts_with(b"HTTP/") => Some(Scheme::Http),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ports_protocol_is_read_from_its_answer_to_plain_text() {
        for (answer, expected) in [
            (&b"HTTP/1.0 200 OK\r\n\r\n{}"[..], Some(Scheme::Http)),
            (b"HTTP/1.1 404 Not Found\r\n\r\n", Some(Scheme::Http)),
            (b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n", Some(Scheme::Https)),
            (&[0x15, 3, 1, 0, 2, 2, 10], Some(Scheme::Https)),
            (b"", None),
            (b"SSH-2.0", None),
        ] {
            assert_eq!(recognise(answer), expected, "{:?}", String::from_utf8_lossy(answer));
        }
    }

    #[test]
    fn reached_peers_are_read_from_the_metrics() {
        let text = "# HELP x\netcd_network_active_peers{Local=\"a\",Remote=\"b\"} 1\n\
                    etcd_network_active_peers{Local=\"a\",Remote=\"c\"} 0\n";
        assert_eq!(active_peers(text), BTreeMap::from([("b".to_owned(), true), ("c".to_owned(), false)]));
    }
}
