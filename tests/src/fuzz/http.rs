//! A call to the standalone signer, as text: the line of the request, headers, an empty line, the body. actix has parsed what arrives
//! at the handler; what is not a call to it is left out here.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use actix_web::{
    App,
    body::{BodySize, MessageBody, to_bytes},
    http::{Method, Uri, header},
    rt::Runtime,
    test::{TestRequest, init_service, try_call_service},
    web::{self, Data},
};
use etcd_tls_contract::{policy::Policy, role::Role};
use etcd_tls_webhook::standalone::{
    auth::Authenticator,
    http::api::handle,
    limits::{Quota, RateLimit},
    metrics::Metrics,
    profiles::{AuthorityFiles, Profiles},
    requests::{pods::Entitlements, server::Server},
    store::{Bounds, Limits, Store},
};

use crate::{pki::Ca, temp::TempDir};

/// An administrator, and two hosts that may get certificates by a rule.
const TOKENS: &str = "\
fuzz-administrator-of-32-characters,admin,1,\"system:masters\"
fuzz-first-host-of-32-characters-aa,first,2,\"hosts\"
fuzz-second-host-of-32-characters-a,second,3,\"hosts\"
";
const RULES: [&str; 2] = ["hosts=peer:*.example.com,10.0.0.0/8", "hosts=client:*.clients.example.com"];
/// Requests that are created before the signer starts anew.
const MOST: usize = 100;
/// How long is waited for the next part of a body without end, such as a watch's.
const PART: Duration = Duration::from_millis(1);

/// A signer with its files.
struct Signer {
    server: Data<Server>,
    _files: TempDir,
    created: usize,
}

thread_local! {
    static RUNTIME: Runtime = Runtime::new().expect("a runtime");
    static SIGNER: RefCell<Signer> = RefCell::new(Signer::new());
}

impl Signer {
    fn new() -> Self {
        let files = TempDir::in_memory("fuzz-http");
        let ca = Ca::new("fuzz");
        files.write("ca.crt", &ca.pem);
        files.write("ca.key", &ca.key_pem);
        files.write("tokens", TOKENS);
        let authority = AuthorityFiles { certificate: files.join("ca.crt"), key: files.join("ca.key") };
        let life = Duration::from_secs(3600);
        let authorities: BTreeMap<_, _> = [Role::Peer, Role::Server, Role::Client, Role::Metrics]
            .map(|role| (role, (authority.clone(), life)))
            .into();
        let bounds = Bounds { per_name: MOST, per_user: MOST, room: MOST };
        let limits = Limits { requests: 2 * MOST, certificates: bounds, ..Limits::default() };
        let server = Server {
            auth: Authenticator::new(Some(files.join("tokens")), false).expect("tokens"),
            store: Store::open(&files.dir("requests"), limits).expect("a store"),
            profiles: Profiles::load(authorities, SystemTime::now()).expect("profiles"),
            rules: RULES.map(|rule| rule.parse().expect("a rule")).into(),
            admin_groups: vec!["system:masters".to_owned()],
            cluster: None,
            entitlements: Entitlements::new(Policy::default(), None),
            limit: RateLimit::new(0),
            lists: Quota::new("lists", 4, 32),
            watches: Quota::new("watches", 4, 32),
            bodies: Quota::new("bodies", 4, 32),
            metrics: Metrics::default(),
        };
        Self { server: Data::new(server), _files: files, created: 0 }
    }
}

/// The call in `text`; `None` if it is none.
fn call(bytes: &[u8]) -> Option<TestRequest> {
    let end = bytes.windows(2).position(|two| two == b"\n\n")?;
    let (head, body) = (std::str::from_utf8(&bytes[..end]).ok()?, &bytes[end + 2..]);
    let mut lines = head.lines();
    let (method, target) = lines.next()?.split_once(' ')?;
    let method = Method::from_bytes(method.as_bytes()).ok()?;
    // A path, as an HTTP/1.1 client sends it.
    let target: Uri = Some(target).filter(|target| target.starts_with('/'))?.parse().ok()?;
    let mut request = TestRequest::default().method(method).uri(&target.to_string());
    for line in lines {
        let (name, value) = line.split_once(": ")?;
        let name = header::HeaderName::try_from(name).ok()?;
        request = request.append_header((name, header::HeaderValue::from_str(value).ok()?));
    }
    Some(request.set_payload(body.to_vec()))
}

/// A call. Nobody gets anything without a token, no call fails inside, and what is said to be JSON is.
pub(super) fn run(bytes: &[u8]) {
    let Some(request) = call(bytes) else { return };
    let request = request.to_request();
    let path = request.path().to_owned();
    let known = TOKENS.lines().filter_map(|line| line.split(',').next()).any(|token| {
        // Space after a header's value is no part of it.
        let mut values = request.head().headers.get_all(header::AUTHORIZATION);
        values.any(|value| value.as_bytes().trim_ascii_end().ends_with(token.as_bytes()))
    });
    let server = SIGNER.with_borrow_mut(|signer| {
        if signer.created >= MOST {
            *signer = Signer::new();
        }
        signer.server.clone()
    });
    let (status, said) = RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let app = init_service(App::new().app_data(server).default_service(web::to(handle))).await;
            let response = try_call_service(&app, request).await.expect("an answer");
            let (status, headers) = (response.status(), response.headers().clone());
            assert_ne!(status.as_u16(), 500, "{path}");
            let json = headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
            let body = response.into_body();
            let mut said = bytes::Bytes::new();
            if let BodySize::Stream = body.size() {
                let mut body = std::pin::pin!(body);
                let part = std::future::poll_fn(|context| body.as_mut().poll_next(context));
                let _ = tokio::time::timeout(PART, part).await;
            } else {
                said = to_bytes(body).await.unwrap_or_else(|_| panic!("{path}: no body"));
                assert!(!json || serde_json::from_slice::<serde_json::Value>(&said).is_ok(), "{path}: {said:?}");
            }
            (status, said)
        })
    });
    // A probe says no more than that.
    assert!(known || status == 401 || said == "ok", "{path}: {status} without a token: {said:?}");
    if status == 201 {
        SIGNER.with_borrow_mut(|signer| signer.created += 1);
    }
}
