//! Images over HTTP/1.1, on the port of the gRPC services: whoever asks is sent on to an agent. No
//! byte of an image comes through here.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use isotope_proto::id::ImageId;
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::signature::{Leave, may_read};
use isotope_proto::web;
use tonic::service::Routes;

use crate::urls::{self, Wanted};
use crate::{Core, clock};

/// The gRPC services' routes, and those of HTTP.
pub(super) fn beside(services: Routes, core: Core) -> Routes {
    let read = MethodFilter::GET.or(MethodFilter::HEAD);
    let router = Router::new()
        .route("/content/{image}", on(read, content))
        .route("/content/{image}/{*name}", on(read, content))
        .route("/files", on(read, files))
        .route("/files/", on(read, files))
        .route("/files/{*path}", on(read, files))
        .with_state(core);
    services.into_axum_router().merge(router).fallback(nothing).into()
}

async fn nothing(headers: HeaderMap, uri: Uri) -> Response {
    if web::is_grpc(&headers) {
        return tonic::Status::unimplemented("").into_http::<axum::body::Body>();
    }
    web::refused(&web::nothing_at(uri.path())).into_response()
}

async fn content(State(core): State<Core>, request: Request) -> Response {
    answered(content_url(&core, request.uri()).await)
}

async fn files(State(core): State<Core>, request: Request) -> Response {
    answered(file_url(&core, request.uri()).await)
}

async fn content_url(core: &Core, uri: &Uri) -> Result<String, Refusal> {
    let (image, name) = web::content_of(uri.path())?;
    let leave = may_read(Some(core.store.url_key()), image, uri.query(), clock::now())?;
    let found = urls::find(core, Wanted::Image(image)).await?;
    let name = name.map_or_else(|| found.name.clone(), |name| name.to_string());
    let (known_as, url) = found.at_agent(&name)?;
    let changed = (known_as != image).then_some(known_as);
    Ok(url + &query(core, leave, changed, uri.query()))
}

async fn file_url(core: &Core, uri: &Uri) -> Result<String, Refusal> {
    let found = urls::find(core, Wanted::Path(web::library_path_of(uri.path())?)).await?;
    let leave = may_read(Some(core.store.url_key()), found.image, uri.query(), clock::now())?;
    let (known_as, url) = found.at_agent(&found.name)?;
    let changed = (known_as != found.image).then_some(known_as);
    Ok(url + &query(core, leave, changed, uri.query()))
}

/// The query goes along as it is, except that a signature is for one id: where the agent knows the
/// bytes by another, that is signed for the same time.
fn query(core: &Core, leave: Leave, changed: Option<ImageId>, asked: Option<&str>) -> String {
    match (leave, changed, asked) {
        (Leave::Signed { expires }, Some(image), _) => {
            format!("?{}", core.store.url_key().query(image, expires))
        }
        (_, _, Some(query)) => format!("?{query}"),
        (_, _, None) => String::new(),
    }
}

/// 307 leaves the method as it is (RFC 9110 §15.4.8). Kept by nobody: names move, and hosts go.
fn answered(url: Result<String, Refusal>) -> Response {
    let location = url.and_then(|url| {
        let odd = |_| Refusal::new(Reason::Storage, "the agent's address makes no URL");
        HeaderValue::from_str(&url).map(|value| (url, value)).map_err(odd)
    });
    match location {
        Ok((url, value)) => {
            let text = format!("the image is at {url}");
            let mut response = web::told(StatusCode::TEMPORARY_REDIRECT, &text).into_response();
            response.headers_mut().insert(header::LOCATION, value);
            response
        }
        Err(refusal) => web::refused(&refusal).into_response(),
    }
}
