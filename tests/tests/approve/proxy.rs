//! A proxy in front of the API server: it does something just before the first PATCH of one object goes through, holds the
//! watches of one collection, or has a process lead by a Lease of its own.

use std::{
    convert::Infallible,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::StreamExt;
use http_body_util::{BodyExt, Either, StreamBody};
use hyper::{
    Method, Request, Response,
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::{Client, client::Body};
use tokio::{net::TcpListener, task::JoinHandle};

/// See the module. Ends when dropped.
pub struct Proxy {
    pub url: String,
    fired: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// Passes everything on with `client`'s rights; before the first PATCH of a path that ends in `suffix`, `hook` runs.
    pub async fn start<F>(client: Client, suffix: &str, hook: impl Fn() -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let fired = Arc::new(AtomicBool::new(false));
        let (once, suffix) = (Arc::clone(&fired), suffix.to_owned());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (client, once, suffix, hook) = (client.clone(), Arc::clone(&once), suffix.clone(), hook.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (client, once, suffix, hook) =
                        (client.clone(), Arc::clone(&once), suffix.clone(), hook.clone());
                    async move {
                        let first = request.method() == Method::PATCH
                            && request.uri().path().ends_with(&suffix)
                            && !once.swap(true, Ordering::SeqCst);
                        if first {
                            hook().await;
                        }
                        Ok::<_, Infallible>(pass_on(&client, request).await)
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { url, fired, task }
    }

    /// Passes everything on with `client`'s rights; while `held` is true, nothing comes through the watches of `path`.
    #[allow(dead_code, reason = "not every test holds a watch")]
    pub async fn holding(client: Client, path: &'static str, held: tokio::sync::watch::Receiver<bool>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (client, held) = (client.clone(), held.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (client, held) = (client.clone(), held.clone());
                    async move {
                        let query = request.uri().query().unwrap_or_default();
                        let hold = request.uri().path() == path && query.contains("watch=true");
                        let answer = pass_on(&client, request).await;
                        Ok::<_, Infallible>(
                            answer.map(|body| if hold { Either::Left(gated(body, held)) } else { Either::Right(body) }),
                        )
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { url, fired: Arc::default(), task }
    }

    /// Passes everything on with `client`'s rights. Lists and watches of `path` show resourceVersions that are far ahead, as those of the time
    /// before the datastore was restored from a backup.
    #[allow(dead_code, reason = "not every test restores a datastore")]
    pub async fn ahead(client: Client, path: &'static str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let client = client.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    let client = client.clone();
                    async move {
                        let turn = request.uri().path() == path;
                        let answer = pass_on(&client, request).await;
                        Ok::<_, Infallible>(
                            answer.map(|body| if turn { Either::Left(of_later(body)) } else { Either::Right(body) }),
                        )
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { url, fired: Arc::default(), task }
    }

    /// Passes everything on with `client`'s rights, except calls for Lease `lease`: they go to another Lease, with `admin`'s
    /// rights. So every process behind the proxy leads.
    #[allow(dead_code, reason = "most processes lead by the Lease that they share")]
    pub async fn with_own_lease(client: Client, admin: Client, lease: &'static str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("bind");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (client, admin) = (client.clone(), admin.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (client, admin) = (client.clone(), admin.clone());
                    async move {
                        let path = request.uri().path();
                        let of_lease = path.ends_with("/leases") || path.ends_with(&format!("/leases/{lease}"));
                        // A dry run proves that the policy on Leases refuses the process another one.
                        let dry = request.uri().query().is_some_and(|query| query.contains("dryRun=All"));
                        let answer = if of_lease && !dry {
                            pass_on_as(&admin, request, &|text| text.replace(lease, &format!("{lease}-own"))).await
                        } else {
                            pass_on(&client, request).await
                        };
                        Ok::<_, Infallible>(answer)
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { url, fired: Arc::default(), task }
    }

    /// Whether the moment came.
    pub fn fired(&self) -> bool {
        self.fired.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass_on(client: &Client, request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    send(client, parts, body.to_vec()).await
}

/// The same, with path and body turned into others.
async fn pass_on_as(
    client: &Client,
    request: Request<Incoming>,
    turn: &(dyn Fn(&str) -> String + Sync),
) -> Response<Body> {
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    let path = parts.uri.path_and_query().expect("a path").as_str();
    parts.uri = turn(path).parse().expect("a path");
    // Of an own Lease, the name stands in the body as it is.
    let text = String::from_utf8_lossy(&body).replace("-own\"", "\"");
    send(client, parts, turn(&text).into_bytes()).await
}

async fn send(client: &Client, parts: hyper::http::request::Parts, body: Vec<u8>) -> Response<Body> {
    let path = parts.uri.path_and_query().expect("a path").as_str();
    let mut on = Request::builder().method(parts.method).uri(path);
    for name in ["accept", "content-type"] {
        if let Some(value) = parts.headers.get(name) {
            on = on.header(name, value);
        }
    }
    let answer = client.send(on.body(Body::from(body)).expect("a request")).await.expect("an answer");
    let (mut parts, body) = answer.into_parts();
    // Of this connection, not of the one to the API server.
    parts.headers.remove("transfer-encoding");
    parts.headers.remove("content-length");
    Response::from_parts(parts, body)
}

/// A list, or the frames of a watch, with larger resourceVersions.
fn of_later(body: Body) -> StreamBody<impl futures::Stream<Item = Result<Frame<bytes::Bytes>, kube::Error>>> {
    let state = (body.into_data_stream(), Vec::new());
    StreamBody::new(futures::stream::unfold(state, |(mut chunks, mut rest): (_, Vec<u8>)| async move {
        let end = loop {
            if let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                break end + 1;
            }
            match chunks.next().await {
                Some(Ok(chunk)) => rest.extend_from_slice(&chunk),
                Some(Err(error)) => return Some((Err(error), (chunks, rest))),
                None if rest.is_empty() => return None,
                None => break rest.len(),
            }
        };
        let line: Vec<u8> = rest.drain(..end).collect();
        let key = r#""resourceVersion":""#;
        let line = String::from_utf8_lossy(&line).replace(key, &format!("{key}9999"));
        Some((Ok(Frame::data(line.into())), (chunks, rest)))
    }))
}

/// A body of which nothing comes while `held` is true.
fn gated(
    body: Body,
    held: tokio::sync::watch::Receiver<bool>,
) -> StreamBody<impl futures::Stream<Item = Result<Frame<bytes::Bytes>, kube::Error>>> {
    StreamBody::new(body.into_data_stream().then(move |chunk| {
        let mut held = held.clone();
        async move {
            let _ = held.wait_for(|held| !held).await;
            chunk.map(Frame::data)
        }
    }))
}
