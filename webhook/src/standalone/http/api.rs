//! The resource over HTTP: paths and methods, their rights and their answers.
//!
//! | caller | may |
//! | --- | --- |
//! | everybody who is recognised | create; get, list, watch and delete what is its own |
//! | | get and watch the trust ConfigMap |
//! | who may revoke (`revokers` of the policy, administrators) | patch it with requests to revoke |
//! | an administrator (`--admin-group`) | all of it on everything, and approve and deny |

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use actix_web::{
    HttpRequest, HttpResponse,
    http::{ConnectionType, Method, StatusCode, header},
    web,
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::{Bytes, BytesMut};
use etcd_tls_telemetry::admin;
use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use serde_json::Value;
use tokio::time;

use crate::standalone::{
    auth::{ConnectionIdentity, User},
    codec,
    error::{self, ApiError},
    http::{
        list::List,
        openapi,
        route::{Query, Route, Selector, flag},
        table::{self, Form, Include},
        trust::{self, Trust},
        watch::Watch,
    },
    requests::{approval, create, server::Server},
    store::{Mutation, StoredRequest},
    version::Version,
};

/// The longest body that is read. A request of 4 KiB is 6 KiB in base64; labels and annotations have the rest.
pub const MAX_BODY: usize = 64 * 1024;
/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(10);
/// How long an unread body outlives its answer.
const HOLD: Duration = Duration::from_secs(2);
/// The longest watch, and how long one is that does not say.
const MAX_WATCH: u64 = 3600;

/// Answers every call.
pub async fn handle(request: HttpRequest, mut payload: web::Payload, server: web::Data<Server>) -> HttpResponse {
    let started = Instant::now();
    let caller = server.caller(&request);
    let is_known = matches!(caller, Ok(Some(_)));
    let mut answer = server.answer(&server, &request, &mut payload, caller).await.unwrap_or_else(|error| {
        if matches!(error, ApiError::Internal(_)) {
            tracing::error!(%error, path = request.path(), "a call failed");
        }
        error.response()
    });
    if !is_known {
        // Whoever may not call, or only asks how the signer is, keeps no connection.
        answer.head_mut().set_connection_type(ConnectionType::Close);
    }
    server.metrics.call(answer.status().as_u16(), started.elapsed());
    tracing::debug!(
        method = %request.method(),
        path = request.path(),
        code = answer.status().as_u16(),
        micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        "call"
    );
    if request.headers().contains_key(header::TRANSFER_ENCODING) || answer.status() == StatusCode::PAYLOAD_TOO_LARGE {
        // Of a chunked body that was dropped, actix would read the rest, without an end or a limit. Of one that is still
        // held when the answer goes out, it reads nothing and closes the connection.
        actix_web::rt::spawn(async move {
            time::sleep(HOLD).await;
            drop(payload);
        });
    }
    answer
}

impl Server {
    async fn answer(
        &self,
        shared: &web::Data<Self>,
        request: &HttpRequest,
        payload: &mut web::Payload,
        caller: Result<Option<User>, ApiError>,
    ) -> Result<HttpResponse, ApiError> {
        let route = Route::of(request.path());
        let Some(user) = caller? else {
            return if route == Some(Route::Ready) { self.ready().map(|()| text("ok")) } else { Ok(text("ok")) };
        };
        let caller = if user.is_in("system:unauthenticated") {
            // Anonymous callers are distinguished by address.
            request.peer_addr().map_or_else(String::new, |a| a.ip().to_string())
        } else {
            user.name.clone()
        };
        self.limit.take(&caller, Instant::now())?;
        let query = web::Query::<Query>::from_query(request.query_string())
            .map_err(|_| ApiError::BadRequest("the query cannot be read".to_owned()))?
            .into_inner();
        let route = route.ok_or(ApiError::NoSuchPath)?;
        if let Route::OpenApiV2 = route {
            // In an encoding of its own, which is none of the resource's.
            let document = openapi::v2(&accept(request)).ok_or(ApiError::NotAcceptable)?;
            return Ok(HttpResponse::Ok().content_type(document.media_type).body(document.bytes));
        }
        let form = accepted(request, &query)?;
        let method = request.method();
        match route {
            Route::Live | Route::Ready | Route::OpenApiV2 => Err(ApiError::NoSuchPath),
            Route::Metrics => {
                self.require_admin(&user, "read metrics")?;
                Ok(text(&admin::with_process(&self.metrics())))
            }
            Route::Document(document) if *method == Method::GET => Ok(json_response(StatusCode::OK, &document)),
            Route::Trust { namespace, name } if *method == Method::GET || *method == Method::PATCH => {
                let trust = Trust::of(self, &namespace, &name)?;
                if *method == Method::PATCH {
                    let (kind, dry) = (content_type(request), flag(&query, "dryRun"));
                    trust.patch(self, &user, &kind, &self.body(&caller, &user, request, payload).await?, dry).await?;
                }
                Ok(trust::answer(&trust.object(self, &user)))
            }
            Route::Trusts { namespace } if *method == Method::GET => {
                let trust = self.watched(&namespace, &query)?;
                let permit = self.watches.take(&caller, self.is_admin(&user))?;
                let lasts = Duration::from_secs(watch_seconds(&query)?);
                Ok(trust.watch(shared, &user, lasts, flag(&query, "allowWatchBookmarks"), permit))
            }
            Route::Collection(version) => match *method {
                Method::POST => {
                    let body = self.body(&caller, &user, request, payload).await?;
                    let body = codec::object(&content_type(request), &body)?;
                    let created = create::create(self, &user, version, body, flag(&query, "dryRun")).await?;
                    let object = table::one(&created.stored, version, form, Timestamp::now());
                    let mut response = bytes_response(StatusCode::CREATED, object);
                    if let Some(warning) = created.waits.as_deref().and_then(warning) {
                        response.headers_mut().insert(header::WARNING, warning);
                    }
                    Ok(response)
                }
                Method::GET => {
                    let owner = (!self.is_admin(&user)).then(|| user.name.clone());
                    let selector = Selector::parse(&query, owner)?;
                    if flag(&query, "watch") {
                        self.watch(&caller, selector, &query, version, form)
                    } else {
                        self.list(&caller, &selector, &query, version, form).await
                    }
                }
                _ => Err(ApiError::MethodNotAllowed),
            },
            Route::Item(version, name) | Route::Status(version, name) if *method == Method::GET => {
                let stored = self.visible(&user, &name)?;
                Ok(bytes_response(StatusCode::OK, table::one(&stored, version, form, Timestamp::now())))
            }
            Route::Item(_, name) if *method == Method::DELETE => {
                let body = self.body(&caller, &user, request, payload).await?;
                let options = if body.is_empty() { Value::Null } else { codec::object(&content_type(request), &body)? };
                self.delete(&user, &name, &query, &options).await
            }
            Route::Approval(version, name) => {
                let stored = match *method {
                    Method::GET => self.visible(&user, &name)?,
                    Method::PUT | Method::PATCH => {
                        self.require_admin(&user, "approve or deny requests")?;
                        let kind = content_type(request);
                        let body = self.body(&caller, &user, request, payload).await?;
                        let change = approval::Change::read(method == Method::PATCH, &kind, &body)?;
                        approval::decide(self, &user, version, &name, change, flag(&query, "dryRun")).await?
                    }
                    _ => return Err(ApiError::MethodNotAllowed),
                };
                Ok(bytes_response(StatusCode::OK, table::one(&stored, version, form, Timestamp::now())))
            }
            _ => Err(ApiError::MethodNotAllowed),
        }
    }

    /// The body of a call. One that does not come with its head takes a place of those that are awaited.
    async fn body(
        &self,
        caller: &str,
        user: &User,
        request: &HttpRequest,
        payload: &mut web::Payload,
    ) -> Result<Bytes, ApiError> {
        let declared = request.headers().get(header::CONTENT_LENGTH).and_then(|h| h.to_str().ok()?.parse::<u64>().ok());
        if declared.is_some_and(|length| length > MAX_BODY as u64) {
            return Err(ApiError::TooLarge(MAX_BODY));
        }
        let read = async {
            let (mut body, mut permit) = (BytesMut::new(), None);
            loop {
                let chunk = match payload.next().now_or_never() {
                    Some(chunk) => chunk,
                    None => {
                        if permit.is_none() {
                            permit = Some(self.bodies.take(caller, self.is_admin(user))?);
                        }
                        payload.next().await
                    }
                };
                let Some(chunk) = chunk else { return Ok(body.freeze()) };
                let chunk = chunk.map_err(|e| ApiError::BadRequest(format!("the body cannot be read: {e}")))?;
                if body.len() + chunk.len() > MAX_BODY {
                    return Err(ApiError::TooLarge(MAX_BODY));
                }
                body.extend_from_slice(&chunk);
            }
        };
        time::timeout(BODY_TIME, read)
            .await
            .unwrap_or_else(|_| Err(ApiError::BadRequest("the body took too long".to_owned())))
    }

    /// Who calls. `None`: a probe, or a client before it has a credential, that only asks how the signer is.
    fn caller(&self, request: &HttpRequest) -> Result<Option<User>, ApiError> {
        if matches!(Route::of(request.path()), Some(Route::Live | Route::Ready)) {
            return Ok(None);
        }
        let connection = request.conn_data::<Option<ConnectionIdentity>>().and_then(Option::as_ref);
        if let Some(identity) = connection
            && self.store.with(|index, _| index.revocations().lists(identity.serial()))
        {
            return Err(ApiError::Revoked(identity.serial().to_owned()));
        }
        let authorization = request.headers().get(header::AUTHORIZATION).map(header::HeaderValue::as_bytes);
        self.auth.authenticate(connection, authorization, SystemTime::now()).map(Some)
    }

    fn require_admin(&self, user: &User, what: &str) -> Result<(), ApiError> {
        if self.is_admin(user) {
            return Ok(());
        }
        let groups = self.admin_groups.join(", ");
        Err(ApiError::Forbidden(format!("User {:?} cannot {what}: that is for members of {groups}", user.name)))
    }

    fn visible(&self, user: &User, name: &str) -> Result<Arc<StoredRequest>, ApiError> {
        let stored = self.store.get(name).ok_or_else(|| ApiError::NotFound(name.to_owned()))?;
        if stored.owner() == user.name || self.is_admin(user) {
            return Ok(stored);
        }
        Err(ApiError::Forbidden(format!("User {:?} cannot read request {name:?}, which is another's", user.name)))
    }

    /// The one ConfigMap that a watch selects by its name.
    fn watched(&self, namespace: &str, query: &Query) -> Result<Trust, ApiError> {
        let name = query.get("fieldSelector").and_then(|selector| selector.strip_prefix("metadata.name="));
        match name {
            Some(name) if flag(query, "watch") => Trust::of(self, namespace, name),
            _ => Err(ApiError::BadRequest(
                "ConfigMaps are only read by name, or watched with the field selector metadata.name=".to_owned(),
            )),
        }
    }

    async fn list(
        &self,
        caller: &str,
        selector: &Selector,
        query: &Query,
        version: Version,
        form: Form,
    ) -> Result<HttpResponse, ApiError> {
        let limit = match query.get("limit").map(|l| l.parse::<usize>()) {
            None => usize::MAX,
            Some(Ok(0)) => usize::MAX,
            Some(Ok(limit)) => limit,
            Some(Err(_)) => return Err(ApiError::BadRequest("limit is not a number".to_owned())),
        };
        let after = match query.get("continue").filter(|c| !c.is_empty()) {
            Some(token) => String::from_utf8(URL_SAFE_NO_PAD.decode(token).unwrap_or_default())
                .ok()
                .filter(|name| !name.is_empty())
                .ok_or_else(|| ApiError::BadRequest("continue key is not valid".to_owned()))?,
            None => String::new(),
        };
        // An agent that waits for its own request looks for it so, as do all who share its token.
        let one = selector.name().is_some();
        let permit = if one { None } else { Some(self.lists.take(caller, selector.is_of_all())?) };
        let (page, remaining, revision) = self.store.with(|index, revision| {
            if let Some(name) = selector.name() {
                let found = index.get(name).filter(|r| r.name() > after.as_str() && selector.takes(r));
                return (found.cloned().into_iter().take(limit).collect(), 0, revision);
            }
            let mut all = index.after(&after).filter(|r| selector.takes(r));
            let page: Vec<Arc<StoredRequest>> = all.by_ref().take(limit).cloned().collect();
            (page, all.count(), revision)
        });
        let next = (remaining > 0).then(|| Some((URL_SAFE_NO_PAD.encode(page.last()?.name()), remaining))).flatten();
        List { page, revision, next, version, form, now: Timestamp::now(), permit }.response().await
    }

    fn watch(
        &self,
        caller: &str,
        selector: Selector,
        query: &Query,
        version: Version,
        form: Form,
    ) -> Result<HttpResponse, ApiError> {
        let permit = self.watches.take(caller, selector.is_of_all())?;
        let seconds = watch_seconds(query)?;
        let send_initial = query.get("sendInitialEvents").map(String::as_str);
        let from = query.get("resourceVersion").map_or("", String::as_str);
        // An empty value or 0 sends the present objects and then the changes. So does sendInitialEvents, with a bookmark in
        // between.
        let with_initial = send_initial == Some("true") || (send_initial.is_none() && matches!(from, "" | "0"));
        let (initial, now) = self.store.with(|index, revision| {
            let initial: Vec<_> = index.iter().filter(|r| with_initial && selector.takes(r)).cloned().collect();
            (initial, revision)
        });
        let revision = match from {
            "" | "0" => now,
            _ if with_initial => now,
            from => from.parse().map_err(|_| ApiError::BadRequest(format!("resourceVersion {from:?} is no number")))?,
        };
        let watch = Watch {
            store: self.store.clone(),
            selector,
            version,
            form,
            revision,
            initial: initial.into(),
            mark_initial_end: send_initial == Some("true"),
            bookmarks: flag(query, "allowWatchBookmarks"),
            end: Instant::now() + Duration::from_secs(seconds),
            permit,
        };
        Ok(HttpResponse::Ok().content_type("application/json").streaming(watch.into_stream()))
    }

    async fn delete(&self, user: &User, name: &str, query: &Query, options: &Value) -> Result<HttpResponse, ApiError> {
        let seen = self.visible(user, name)?.uid().to_owned();
        let precondition = |key: &str| options["preconditions"][key].as_str().map(str::to_owned);
        let (uid, revision) = (precondition("uid"), precondition("resourceVersion"));
        let dry_run = flag(query, "dryRun") || options["dryRun"].as_array().is_some_and(|d| !d.is_empty());
        if dry_run {
            let stored = self.visible(user, name)?;
            return Ok(json_response(StatusCode::OK, &error::deleted(name, stored.uid())));
        }
        let wanted = name.to_owned();
        let stored = self
            .store
            .change(move |index| {
                let stored = index.get(&wanted).ok_or_else(|| ApiError::NotFound(wanted.clone()))?;
                let differs = |given: &Option<String>, is: &str| given.as_deref().is_some_and(|given| given != is);
                // Not one that somebody else has made in the meantime.
                if differs(&uid, stored.uid())
                    || seen != stored.uid()
                    || differs(&revision, &stored.revision.to_string())
                {
                    return Err(ApiError::Conflict {
                        name: wanted,
                        message: "the preconditions do not hold".to_owned(),
                    });
                }
                Ok(Mutation::Delete(wanted))
            })
            .await?;
        tracing::info!(request = name, by = user.name, "deleted");
        Ok(json_response(StatusCode::OK, &error::deleted(name, stored.uid())))
    }
}

/// How long a watch is to last.
fn watch_seconds(query: &Query) -> Result<u64, ApiError> {
    match query.get("timeoutSeconds").map(|t| t.parse::<u64>()) {
        None => Ok(MAX_WATCH),
        Some(Ok(seconds)) => Ok(seconds.min(MAX_WATCH)),
        Some(Err(_)) => Err(ApiError::BadRequest("timeoutSeconds is not a number".to_owned())),
    }
}

/// A warning that kubectl shows: why a request waits.
fn warning(reason: &str) -> Option<header::HeaderValue> {
    let quoted: String =
        reason.chars().flat_map(|c| if matches!(c, '"' | '\\') { vec!['\\', c] } else { vec![c] }).collect();
    header::HeaderValue::from_str(&format!("299 - \"waits to be approved: {quoted}\"")).ok()
}

fn accepted(request: &HttpRequest, query: &Query) -> Result<Form, ApiError> {
    let include = match query.get("includeObject").map(String::as_str) {
        None | Some("" | "Metadata") => Include::Metadata,
        Some("Object") => Include::Object,
        Some("None") => Include::None,
        Some(_) => return Err(ApiError::BadRequest("includeObject is None, Metadata or Object".to_owned())),
    };
    table::negotiate(&accept(request), include).ok_or(ApiError::NotAcceptable)
}

/// The content types that the caller accepts, in one line.
fn accept(request: &HttpRequest) -> String {
    let headers: Vec<&str> = request.headers().get_all(header::ACCEPT).filter_map(|h| h.to_str().ok()).collect();
    headers.join(",")
}

/// The body's media type without its parameters; empty where none is said.
fn content_type(request: &HttpRequest) -> String {
    let header = request.headers().get(header::CONTENT_TYPE).and_then(|h| h.to_str().ok()).unwrap_or_default();
    header.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn text(text: &str) -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; charset=utf-8").body(text.to_owned())
}

fn json_response(code: StatusCode, value: &Value) -> HttpResponse {
    bytes_response(code, value.to_string().into_bytes())
}

fn bytes_response(code: StatusCode, json: Vec<u8>) -> HttpResponse {
    HttpResponse::build(code).content_type("application/json").body(json)
}
