//! Tier 2: traces of issuance, from the real `admit`, `approve` and `sign`, at a collector that reads the OpenTelemetry protocol.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use etcd_tls_contract::names;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Bytes, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt as _};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value as AnyValue, trace::v1::Span,
};
use prost::Message as _;
use serde_json::Value;
use tests::{
    eventually,
    installation::{self, Installation, LIMIT, Options},
    ports,
    process::which,
};
use tokio::{net::TcpListener, task::JoinHandle};

/// A span, with the service that exported it.
#[derive(Clone, Debug)]
struct Seen {
    service: String,
    span: Span,
}

impl Seen {
    fn attribute(&self, name: &str) -> String {
        let value = self.span.attributes.iter().find(|a| a.key == name).and_then(|a| a.value.clone()?.value);
        match value {
            Some(AnyValue::StringValue(text)) => text,
            _ => String::new(),
        }
    }
}

/// A collector. Dropped, it is gone.
struct Collector {
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Collector {
    async fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("a port of the collector");
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let all = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            // Connections end with it.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let all = Arc::clone(&all);
                let service = service_fn(move |request: Request<Incoming>| take(request, Arc::clone(&all)));
                connections.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        Self { seen, task }
    }

    fn spans(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The spans of this name about this pod.
    fn named(&self, name: &str, pod: &str) -> Vec<Seen> {
        self.spans().into_iter().filter(|seen| seen.span.name == name && seen.attribute("pod") == pod).collect()
    }
}

async fn take(request: Request<Incoming>, all: Arc<Mutex<Vec<Seen>>>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    assert_eq!(request.uri().path(), "/v1/traces", "the path of the protocol");
    let body = request.into_body().collect().await?.to_bytes();
    let exported = ExportTraceServiceRequest::decode(body).expect("the protocol");
    for resource in exported.resource_spans {
        let attributes = resource.resource.map(|resource| resource.attributes).unwrap_or_default();
        let service = attributes.into_iter().find(|a| a.key == "service.name").and_then(|a| a.value?.value);
        let Some(AnyValue::StringValue(service)) = service else { panic!("no service.name") };
        let spans = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(spans.map(|span| Seen { service: service.clone(), span }));
    }
    Ok(Response::new(Full::default()))
}

fn client_pod(name: &str) -> Value {
    installation::client_pod(name, "client,metrics")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_first_certificates_are_one_trace_and_a_collector_that_is_away_delays_nothing() {
    let port = ports::loopback();
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}")),
        ("OTEL_BSP_SCHEDULE_DELAY", "200".to_owned()),
    ];
    let of_all = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let Some(mut installation) = Installation::start(&Options { of_all, ..Options::default() }).await else { return };
    installation.api.namespace("web", &[]).await;
    let (ip, programs): (IpAddr, _) =
        ("10.1.2.3".parse().expect("an address"), [("app", which("true").expect("true"))]);

    // No collector yet: pods start all the same, and each process says it once.
    let mut before = installation.local_pod("web", client_pod("before"), &[ip], &programs).await.expect("create a pod");
    before.initialise(LIMIT).await.expect("init and sidecar");
    for process in [&installation.admit, &installation.approve, &installation.sign] {
        process.logged("the collector of traces does not take them", LIMIT).await;
    }

    let collector = Collector::start(port).await;
    let mut pod = installation.local_pod("web", client_pod("app-0"), &[ip], &programs).await.expect("create a pod");
    pod.initialise(LIMIT).await.expect("init and sidecar");
    let about = "web/app-0";
    eventually("the spans of two requests", LIMIT, || async {
        let count = |name| collector.named(name, about).len();
        let counts = ["admission", "request", "approve", "sign"].map(count);
        if counts[0] == 1 && counts[1] == 2 && counts[2] >= 2 && counts[3] >= 2 {
            Ok(())
        } else {
            Err(format!("{counts:?}"))
        }
    })
    .await;

    let admission = &collector.named("admission", about)[0];
    assert_eq!((admission.service.as_str(), admission.attribute("verdict").as_str()), ("etcd-tls-admit", "inject"));
    assert!(admission.span.parent_span_id.is_empty(), "the root: {admission:?}");
    let live = Api::<Pod>::namespaced(installation.api.client.clone(), "web").get("app-0").await.expect("the pod");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let place = format!("00-{}-{}-01", hex(&admission.span.trace_id), hex(&admission.span.span_id));
    assert_eq!(live.annotations().get(names::TRACE_ANNOTATION), Some(&place));
    let requests = collector.named("request", about);
    for request in &requests {
        assert_eq!(request.service, "etcd-tls-sign");
        assert_eq!(request.span.parent_span_id, admission.span.span_id, "{request:?}");
        for (name, service) in [("approve", "etcd-tls-approve"), ("sign", "etcd-tls-sign")] {
            let looks = collector.named(name, about);
            let looks: Vec<_> = looks.iter().filter(|look| look.span.parent_span_id == request.span.span_id).collect();
            assert!(!looks.is_empty(), "{name} below {request:?}");
            for look in looks {
                assert_eq!((look.service.as_str(), look.attribute("csr")), (service, request.attribute("csr")));
                assert!(look.span.start_time_unix_nano <= look.span.end_time_unix_nano);
            }
        }
    }
    assert_ne!(requests[0].attribute("signer"), requests[1].attribute("signer"));
    for seen in collector.spans().iter().filter(|seen| seen.attribute("pod") == about) {
        assert_eq!(seen.span.trace_id, admission.span.trace_id, "one trace: {seen:?}");
        let text = format!("{seen:?}");
        assert!(!text.contains("BEGIN") && !text.contains("LS0tLS1CRUdJTi"), "no bytes of a request: {text}");
    }
    for process in [&installation.admit, &installation.approve, &installation.sign] {
        process.logged("the collector takes traces again", LIMIT).await;
    }
    // A collector that goes away again.
    drop(collector);
    let mut after = installation.local_pod("web", client_pod("after"), &[ip], &programs).await.expect("create a pod");
    after.initialise(LIMIT).await.expect("init and sidecar");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_collector_that_can_be_used_pods_are_as_ever() {
    let of_all = vec![("OTEL_EXPORTER_OTLP_ENDPOINT".to_owned(), "https://collector.example:4318".to_owned())];
    let Some(installation) = Installation::start(&Options { of_all, ..Options::default() }).await else { return };
    for process in [&installation.admit, &installation.approve, &installation.sign] {
        process.logged("only http:// is spoken", Duration::from_secs(10)).await;
    }
    installation.api.namespace("web", &[]).await;
    let pod = installation.api.pod("web", client_pod("app-0")).await.expect("create a pod");
    assert_eq!(pod.annotations().get(names::TRACE_ANNOTATION), None);
    assert!(pod.labels().contains_key(names::INJECTED_LABEL), "it is injected");
}
