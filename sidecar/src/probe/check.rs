//! The user's own liveness probe, which the program asks in kubelet's place, as kubelet asks it.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use super::{Failure, one_line};

/// Bytes of an answer that are read; the first line decides.
const MAX_ANSWER: usize = 4096;

/// The check of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Check {
    /// Nothing.
    None,
    /// A TCP connection to this address.
    Tcp(SocketAddr),
    /// An HTTP request. A status from 200 to 399 is a success.
    Http {
        /// The address of the server.
        address: SocketAddr,
        /// The value of the header `Host`.
        authority: String,
        /// Path and query.
        path: String,
    },
    /// A check that only the sidecar can make, since it takes TLS (and a client certificate) or name resolution; the target, if
    /// it is an address.
    BySidecar(Option<SocketAddr>),
}

impl Check {
    /// The check of a probe for an http, https or tcp URL.
    pub fn of(url: Option<&str>) -> Self {
        let Some(url) = url.filter(|url| !url.is_empty()) else { return Self::None };
        let Some((scheme, rest)) = url.split_once("://") else { return Self::BySidecar(None) };
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let address = address(authority);
        match (scheme, address) {
            ("tcp", Some(address)) => Self::Tcp(address),
            // Rewritten, since `$(POD_IP)` of IPv6 has no brackets.
            ("http", Some(address)) => Self::Http { address, authority: address.to_string(), path: escaped(path) },
            (_, address) => Self::BySidecar(address),
        }
    }

    /// Runs the check for at most `limit`. A check that only the sidecar can make passes.
    ///
    /// # Errors
    /// The failed check.
    pub fn ask(&self, limit: Duration) -> Result<(), Failure> {
        match self {
            Self::None | Self::BySidecar(_) => Ok(()),
            Self::Tcp(address) => {
                TcpStream::connect_timeout(address, limit).map(drop).map_err(|e| format!("tcp://{address}: {e}").into())
            }
            Self::Http { address, authority, path } => {
                let asked = get(*address, authority, path, limit);
                let wrong = |what: &str| Err(format!("http://{authority}{path}: {what}").into());
                match asked.as_deref().map(status) {
                    Ok(Some((200..400, _))) => Ok(()),
                    Ok(Some((status, body))) => wrong(&format!("{status} {body}")),
                    Ok(None) => wrong("the answer is no HTTP"),
                    Err(error) => wrong(&error.to_string()),
                }
            }
        }
    }
}

/// `address:port`, an IPv6 address in brackets.
fn address(authority: &str) -> Option<SocketAddr> {
    let (host, port) = authority.rsplit_once(':')?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Some(SocketAddr::new(bare.parse::<IpAddr>().ok()?, port.parse().ok()?))
}

/// A path as it may stand in a request's first line.
fn escaped(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_graphic() {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// The beginning of what is answered.
fn get(address: SocketAddr, authority: &str, path: &str, limit: Duration) -> io::Result<Vec<u8>> {
    let end = Instant::now() + limit;
    let rest = || Some(end.saturating_duration_since(Instant::now())).filter(|rest| !rest.is_zero());
    let late = || io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", limit.as_secs()));
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_write_timeout(Some(rest().ok_or_else(late)?))?;
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: etcd-tls-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    let mut answer = vec![0; MAX_ANSWER];
    let mut length = 0;
    while length < answer.len() {
        let read = rest().ok_or_else(late).and_then(|rest| {
            stream.set_read_timeout(Some(rest))?;
            stream.read(&mut answer[length..])
        });
        match read {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // It has said how it is; the rest would have said why.
            Err(_) if status(&answer[..length]).is_some() => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(late()),
            Err(error) => return Err(error),
        }
        if matches!(status(&answer[..length]), Some((200..400, _))) {
            break;
        }
    }
    answer.truncate(length);
    Ok(answer)
}

/// The status of an answer whose first line is there, and what of its body says why.
fn status(answer: &[u8]) -> Option<(u16, String)> {
    let line = answer.split(|byte| *byte == b'\n').next().filter(|line| line.len() < answer.len())?;
    let mut words = str::from_utf8(line).ok()?.split_ascii_whitespace();
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    let status = words.next().filter(|word| word.len() == 3)?.parse().ok()?;
    let text = String::from_utf8_lossy(answer);
    Some((status, one_line(text.split_once("\r\n\r\n").map_or("", |(_, body)| body))))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{net::TcpListener, thread};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(500);

    #[test]
    fn urls_become_checks() {
        let v4: SocketAddr = "127.0.0.1:2381".parse().unwrap();
        let v6: SocketAddr = "[fd00::1]:2381".parse().unwrap();
        let http = |address, authority: &str, path: &str| Check::Http {
            address,
            authority: authority.to_owned(),
            path: path.to_owned(),
        };
        for (url, check) in [
            (None, Check::None),
            (Some(""), Check::None),
            (Some("tcp://127.0.0.1:2381"), Check::Tcp(v4)),
            (Some("http://127.0.0.1:2381"), http(v4, "127.0.0.1:2381", "/")),
            (
                Some("http://[fd00::1]:2381/health?exclude=NOSPACE&x=/"),
                http(v6, "[fd00::1]:2381", "/health?exclude=NOSPACE&x=/"),
            ),
            (Some("http://fd00::1:2381/health"), http(v6, "[fd00::1]:2381", "/health")),
            (Some("https://fd00::1:2381/health"), Check::BySidecar(Some(v6))),
            (Some("http://127.0.0.1:2381/a b\r\nX: ü"), http(v4, "127.0.0.1:2381", "/a%20b%0D%0AX:%20%C3%BC")),
            (Some("https://127.0.0.1:2381/health"), Check::BySidecar(Some(v4))),
            (Some("https://etcd:2381/health"), Check::BySidecar(None)),
            (Some("http://localhost:2381/health"), Check::BySidecar(None)),
            (Some("http://127.0.0.1/health"), Check::BySidecar(None)),
            (Some("nonsense"), Check::BySidecar(None)),
        ] {
            assert_eq!(Check::of(url), check, "{url:?}");
        }
    }

    /// Answers one connection with `text`, and keeps it open or not.
    fn answering(text: &'static str, open: bool) -> Check {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 1024];
            let n = stream.read(&mut head).unwrap();
            assert!(head[..n].starts_with(b"GET /health?exclude=NOSPACE HTTP/1.1\r\n"));
            stream.write_all(text.as_bytes()).unwrap();
            if open {
                thread::sleep(20 * LIMIT);
            }
        });
        Check::of(Some(&format!("http://{address}/health?exclude=NOSPACE")))
    }

    #[test]
    fn an_answer_counts_as_kubelet_counts() {
        for (text, open, words) in [
            ("HTTP/1.1 200 OK\r\n\r\n", false, None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n", true, None),
            ("HTTP/1.0 302 Found\r\n", true, None),
            ("HTTP/1.1 503 x\r\n\r\n{\"health\":\"false\"}\n", false, Some("503 {\"health\":\"false\"}")),
            ("HTTP/1.1 503 x\r\n\r\nwhy", true, Some("503 why")),
            ("HTTP/1.1 404 Not Found\r\n\r\n", false, Some("404")),
            ("HTTP/1.1 2", false, Some("no HTTP")),
            ("SSH-2.0-x\r\n", false, Some("no HTTP")),
            ("", false, Some("no HTTP")),
            ("", true, Some("no answer within")),
        ] {
            match (answering(text, open).ask(LIMIT), words) {
                (Ok(()), None) => {}
                (Err(error), Some(words)) => assert!(error.to_string().contains(words), "{text:?}: {error}"),
                other => unreachable!("{text:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn who_listens_takes_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(Check::Tcp(address).ask(LIMIT), Ok(()));
        drop(listener);
        let http = Check::of(Some(&format!("http://{address}/")));
        for check in [Check::Tcp(address), http] {
            assert!(check.ask(LIMIT).unwrap_err().to_string().contains("refused"));
        }
    }
}
