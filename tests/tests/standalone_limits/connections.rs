//! Connections of callers that do not go on: what they hold at the standalone signer, and how long.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Command,
    sync::Arc,
};

use rustls::{ClientConnection, StreamOwned};
use serde_json::Value;
use tests::{
    eventually,
    pki::client_config,
    process::Process,
    signer::{ADMIN, BOOTSTRAP, LIMIT, Signer, V1},
};

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// A connection on which TLS is established, by a client that speaks these protocols.
fn connect(signer: &Signer, protocols: &[&str]) -> std::io::Result<Stream> {
    let mut config = rustls::ClientConfig::clone(&client_config(&signer.serving.pem, None));
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = "localhost".try_into().expect("a name");
    let mut tls = ClientConnection::new(Arc::new(config), name).map_err(std::io::Error::other)?;
    let mut tcp = TcpStream::connect(SocketAddr::new(signer.address, signer.port))?;
    tcp.set_read_timeout(Some(LIMIT))?;
    while tls.is_handshaking() {
        tls.complete_io(&mut tcp)?;
    }
    Ok(StreamOwned::new(tls, tcp))
}

/// The files that a process has open.
fn files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("a process").count()
}

/// Over HTTP/2, anybody could ask for any number of answers on one connection and take none. Over HTTP/1.1 a connection holds one: of a
/// caller without a credential none, and of one that does not read for a bounded time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_holds_one_answer_and_not_for_ever() {
    let mut signer = Signer::started(&["--rate-limit=0"]).await;
    let pid = signer.process().id();
    for protocols in [&["h2", "http/1.1"][..], &["http/1.1"]] {
        let stream = connect(&signer, protocols).expect("a connection");
        assert_eq!(stream.conn.alpn_protocol(), Some(&b"http/1.1"[..]), "{protocols:?}");
    }
    assert!(connect(&signer, &["h2"]).is_err(), "HTTP/2");
    let known = format!("Authorization: Bearer {BOOTSTRAP}\r\n");
    for (path, authorization, code) in [
        ("/livez", "", "200"),
        // A probe looks at no credential.
        ("/livez", known.as_str(), "200"),
        ("//%6civez", known.as_str(), "200"),
        (V1, "", "401"),
        (V1, "Authorization: Bearer unknown\r\n", "401"),
    ] {
        let mut stream = connect(&signer, &[]).expect("a connection");
        write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\n{authorization}\r\n").expect("sent");
        let mut answer = String::new();
        // Some close without a TLS goodbye.
        let _ = stream.read_to_string(&mut answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{answer}");
        assert!(answer.to_ascii_lowercase().contains("\r\nconnection: close\r\n"), "{answer}");
    }

    eventually("no connection", LIMIT, || async {
        // Those of before have ended.
        let first = files(pid);
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        if files(pid) == first { Ok(()) } else { Err(first.to_string()) }
    })
    .await;
    let before = files(pid);
    let mut unread = connect(&signer, &[]).expect("a connection");
    unread.sock.set_nonblocking(true).expect("a socket");
    let call = format!("GET /openapi/v2 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {BOOTSTRAP}\r\n\r\n");
    // Until neither side takes more.
    let mut full = 0;
    while full < 20 {
        match unread.write_all(call.as_bytes()) {
            Ok(()) => full = 0,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                full += 1;
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            Err(error) => panic!("the connection ended: {error}"),
        }
    }
    assert_eq!(files(pid), before + 1, "the connection that is not read");
    eventually("its end", LIMIT, || async {
        if files(pid) == before { Ok(()) } else { Err(format!("{} files", files(pid))) }
    })
    .await;
    drop(unread);
}

/// Bodies that do not come take the places of their user alone: those of a host with another token are read beside them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_do_not_come_take_the_places_of_their_user() {
    const PLACES: usize = 128;
    const HONEST: &str = "a-token-of-hosts-in-another-data-centre";
    let mut signer = Signer::new(&["--rate-limit=0"]);
    let tokens = fs::read_to_string(signer.dir.join("tokens")).expect("tokens");
    signer.dir.write("tokens", format!("{tokens}{HONEST},honest,3,\"system:bootstrappers:etcd\"\n"));
    signer.start().await;
    let begin = |token: &str| {
        let mut stream = connect(&signer, &[]).expect("a connection");
        let head = format!("POST {V1} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n");
        write!(stream, "{head}Content-Type: application/json\r\nContent-Length: 60000\r\n\r\n{{").expect("sent");
        stream.flush().expect("sent");
        stream
    };
    let code = |stream: &mut Stream| {
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        String::from_utf8_lossy(&answer[9..]).into_owned()
    };
    // On a machine that is busy the first ones may be given up before the last ones are there.
    let held = (0..10).any(|_| {
        let open: Vec<Stream> = (0..PLACES).map(|_| begin(BOOTSTRAP)).collect();
        let one_more = code(&mut begin(BOOTSTRAP));
        for token in [HONEST, ADMIN] {
            let mut of_another = begin(token);
            write!(of_another, "{}}}", " ".repeat(59_998)).expect("sent");
            of_another.flush().expect("sent");
            // It is no request, but it was read.
            assert_eq!(code(&mut of_another), "422", "of another user");
        }
        drop(open);
        one_more == "429"
    });
    assert!(held, "more than {PLACES} bodies of one user are awaited");
}

/// Connections on which TLS does not begin: others are served beside them, before the first of them is given up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_without_tls_hold_up_nobody() {
    let mut signer = Signer::new(&[]);
    // On one processor there is one worker, which takes 256 handshakes at once by default.
    let allowed = fs::read_to_string("/proc/self/status").expect("this process");
    let first =
        allowed.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")?.trim().split([',', '-']).next());
    let program = signer.command(&signer.dir.join("csrs"), signer.port);
    let mut command = Command::new("taskset");
    command.args(["-c", first.expect("a processor")]).arg(program.get_program()).args(program.get_args());
    signer.process = Some(Process::spawn("signer", &mut command, signer.dir.path()));
    eventually("the signer is ready", LIMIT, || async {
        let answer = signer.try_ask("GET", "/readyz", &[], b"", None);
        if matches!(answer, Ok((200, _))) { Ok(()) } else { Err(format!("{answer:?}")) }
    })
    .await;
    let is_open = |mut stream: &TcpStream| {
        stream.set_nonblocking(true).expect("a socket");
        matches!(stream.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    };
    // A machine that is busy may give some up in the meantime.
    let served = (0..10).any(|_| {
        let open: Vec<_> =
            (0..400).map(|_| TcpStream::connect((signer.address, signer.port)).expect("connect")).collect();
        assert_eq!(signer.ask("GET", V1, ADMIN, &Value::Null).0, 200);
        open.iter().all(is_open)
    });
    assert!(served, "served only when others had been given up");
}
