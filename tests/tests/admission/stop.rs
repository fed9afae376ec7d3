//! The start without a serving pair, and the end: SIGTERM, idle and under load.

use std::{process::Command, time::Duration};

use nix::sys::signal::Signal;
use tests::{
    eventually,
    pki::Ca,
    ports,
    process::{Process, binary},
    temp::TempDir,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{ALONE, Admit, answer, body, head, is_patch, publish};

/// SIGTERM under load: each request that has begun is answered, and its connection then ends. New connections are refused by then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_have_begun_are_answered_after_sigterm() {
    let _alone = ALONE.lock().await;
    let mut admit = Admit::start("admit-drain").await;
    let body = body();
    let (first, rest) = body.split_at(body.len() / 2);
    let begin = head("Content-Type: application/json\r\nExpect: 100-continue\r\n", body.len());
    let mut begun = Vec::new();
    // Few: the time for the first one's body runs while the others shake hands.
    for _ in 0..10 {
        let mut stream = admit.connect().await;
        stream.write_all(begin.as_bytes()).await.expect("write a head");
        // It says so when it reads the body.
        let mut said = [0; "HTTP/1.1 100 Continue\r\n\r\n".len()];
        stream.read_exact(&mut said).await.expect("an interim answer");
        assert!(said.starts_with(b"HTTP/1.1 100 "), "{}", String::from_utf8_lossy(&said));
        stream.write_all(first).await.expect("write half a body");
        begun.push(stream);
    }
    admit.process.signal(Signal::SIGTERM);
    eventually("new connections to be refused", Duration::from_secs(30), || async {
        match TcpStream::connect(("127.0.0.1", admit.port)).await {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let answers = begun.into_iter().map(|mut stream| async move {
        stream.write_all(rest).await.expect("write the other half");
        let patched = is_patch(&answer(&mut stream).await.expect("an answer"));
        let mut after = Vec::new();
        let _ = stream.read_to_end(&mut after).await;
        patched && after.is_empty()
    });
    let answers = futures::future::join_all(answers).await;
    assert!(answers.iter().all(|good| *good), "{answers:?}");
    assert!(admit.process.wait(Duration::from_secs(60)).await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_waits_for_its_pair_and_stops_when_told() {
    let _alone = ALONE.lock().await;
    let dir = TempDir::new("admit-wait");
    let ca = Ca::new("admit");
    dir.dir("serving");
    let (port, admin) = (ports::loopback(), ports::loopback());
    let process = Process::spawn(
        "admit",
        Command::new(binary("etcd-tls-webhook")).args([
            "admit",
            "--sidecar-image=x",
            &format!("--address=127.0.0.1:{port}"),
            &format!("--admin-address=127.0.0.1:{admin}"),
            &format!("--serving-dir={}", dir.join("serving").display()),
        ]),
        dir.path(),
    );
    let mut admit = Admit { process, port, admin, ca, dir };
    let waiting = eventually("not ready is said", Duration::from_secs(30), || async {
        match admit.ready().await {
            Err(answer) if answer.starts_with("HTTP/1.1 503") => Ok(answer),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    assert!(waiting.contains("no serving pair yet"), "{waiting}");
    publish(&admit.ca, &admit.dir.join("serving"));
    eventually("ready", Duration::from_secs(30), || admit.ready()).await;
    assert!(is_patch(&admit.post(&body()).await));
    admit.process.signal(Signal::SIGTERM);
    let mut status = None;
    for _ in 0..600 {
        status = admit.process.exited();
        if status.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(status.expect("it ends").success());
}
