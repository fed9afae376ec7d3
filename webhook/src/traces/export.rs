//! The export: spans go in batches, by a thread of their own, to the collector that the environment names. What it does not take in
//! time is dropped.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry::{
    InstrumentationScope, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{SpanContext, SpanKind, Status, TraceState},
};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{
        BatchSpanProcessor, IdGenerator as _, RandomIdGenerator, SpanData, SpanEvents, SpanLinks, SpanProcessor as _,
    },
};
use tokio::runtime::{Builder, Runtime};

use super::{Context, Reconciliation};

/// Bytes of a collector's answer that are read.
const MAX_ANSWER: usize = 64 * 1024;
/// How long the last spans may take at the end of the process.
const FLUSH: Duration = Duration::from_secs(2);

/// The export of one process; nothing where the environment names no collector.
#[derive(Clone, Debug)]
pub struct Traces(Option<Arc<Exporting>>);

#[derive(Debug)]
struct Exporting {
    process: &'static str,
    processor: BatchSpanProcessor,
}

impl Traces {
    /// Starts the export of `process` if the environment names a collector. One that cannot be used is said, and stops nothing.
    pub fn start(process: &'static str) -> Self {
        let Some(endpoint) = super::collector() else { return Self(None) };
        match exporter(&endpoint) {
            Ok(exporter) => {
                let mut processor = BatchSpanProcessor::builder(exporter).build();
                let name = std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| format!("etcd-tls-{process}"));
                let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
                processor.set_resource(&Resource::builder().with_service_name(name).with_attribute(version).build());
                tracing::info!(endpoint, "traces are exported");
                Self(Some(Arc::new(Exporting { process, processor })))
            }
            Err(error) => {
                tracing::error!(endpoint, %error, "no traces are exported; correct OTEL_EXPORTER_OTLP_ENDPOINT");
                Self(None)
            }
        }
    }

    /// True if spans are exported.
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// The span of a review, which was answered just now.
    pub fn admitted(&self, context: Context, pod: &str, verdict: &'static str, began: SystemTime) {
        let Some(this) = &self.0 else { return };
        let attributes = vec![KeyValue::new("pod", pod.to_owned()), KeyValue::new("verdict", verdict)];
        let span = Span { name: "admission", kind: SpanKind::Server, context, parent: SpanId::INVALID, began };
        this.end(span, attributes, Status::Unset);
    }

    /// The span of a controller's reconciliation of a request, which ended just now, with `trouble` or without; and, where `sign` has
    /// answered, that of the request.
    pub fn reconciled(&self, reconciliation: &Reconciliation<'_>, trouble: Option<&dyn std::error::Error>) {
        let Some(this) = &self.0 else { return };
        let Some(request) =
            Context::of_request(reconciliation.csr_uid, reconciliation.created, reconciliation.admission)
        else {
            return;
        };
        let texts = [
            ("csr", reconciliation.csr),
            ("csr_uid", reconciliation.csr_uid),
            ("signer", reconciliation.signer),
            ("requester", reconciliation.requester),
            ("pod", reconciliation.pod),
        ];
        let attributes = || texts.map(|(name, value)| KeyValue::new(name, value.to_owned())).to_vec();
        let status = trouble.map_or(Status::Ok, |trouble| Status::error(trouble.to_string()));
        let own = Context { span: RandomIdGenerator::default().new_span_id().to_bytes(), ..request };
        let (parent, began) = (SpanId::from_bytes(request.span), reconciliation.began);
        this.end(
            Span { name: this.process, kind: SpanKind::Consumer, context: own, parent, began },
            attributes(),
            status,
        );
        if this.process == "sign" && trouble.is_none() {
            let parent = reconciliation.admission.filter(|admission| admission.trace == request.trace);
            let parent = parent.map_or(SpanId::INVALID, |admission| SpanId::from_bytes(admission.span));
            let (kind, began) = (SpanKind::Producer, reconciliation.created);
            this.end(Span { name: "request", kind, context: request, parent, began }, attributes(), Status::Ok);
        }
    }
}

struct Span {
    name: &'static str,
    kind: SpanKind,
    context: Context,
    parent: SpanId,
    began: SystemTime,
}

impl Exporting {
    fn end(&self, span: Span, attributes: Vec<KeyValue>, status: Status) {
        let Span { name, kind, context, parent, began } = span;
        let (trace, id) = (TraceId::from_bytes(context.trace), SpanId::from_bytes(context.span));
        self.processor.on_end(SpanData {
            span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::default()),
            parent_span_id: parent,
            parent_span_is_remote: true,
            span_kind: kind,
            name: name.into(),
            start_time: began,
            end_time: SystemTime::now(),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: InstrumentationScope::builder("etcd-tls").build(),
        });
    }
}

impl Drop for Exporting {
    fn drop(&mut self) {
        if let Err(error) = self.processor.shutdown_with_timeout(FLUSH) {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

/// The endpoint is of no use.
#[derive(Debug, thiserror::Error)]
enum ExportError {
    #[error("only http:// is spoken; name a collector on the node or in the cluster, and let it speak TLS to others")]
    Scheme,
    #[error(transparent)]
    Runtime(#[from] std::io::Error),
    #[error(transparent)]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

fn exporter(endpoint: &str) -> Result<SpanExporter, ExportError> {
    if !endpoint.starts_with("http://") {
        return Err(ExportError::Scheme);
    }
    let collector = Collector {
        runtime: Builder::new_current_thread().enable_all().build()?,
        client: Client::builder(TokioExecutor::new()).build_http(),
        failed: AtomicBool::new(false),
    };
    Ok(SpanExporter::builder().with_http().with_http_client(collector).build()?)
}

/// HTTP/1.1 to the collector, on the thread that exports.
#[derive(Debug)]
struct Collector {
    runtime: Runtime,
    client: Client<HttpConnector, Full<Bytes>>,
    failed: AtomicBool,
}

#[async_trait::async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(10), async {
                let (head, body) = self.client.request(request.map(Full::new)).await?.into_parts();
                let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
                Ok::<_, HttpError>(Response::from_parts(head, body))
            })
            .await
            .unwrap_or_else(|_| Err("no answer in ten seconds".into()))
        });
        let problem = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answers {}", answer.status())),
            Err(error) => Some(error.to_string()),
        };
        let failed = problem.is_some();
        if self.failed.swap(failed, Ordering::Relaxed) != failed {
            match problem {
                Some(problem) => {
                    tracing::warn!(error = problem, "the collector of traces does not take them; they are lost");
                }
                None => tracing::info!("the collector takes traces again"),
            }
        }
        answer
    }
}
