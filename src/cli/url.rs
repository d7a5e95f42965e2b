//! `isotope url`.

use std::net::IpAddr;
use std::time::Duration;

use clap::Args;
use isotope_proto::pb;
use isotope_proto::refusal::{Reason, Refusal};
use serde::Serialize;
use tonic::transport::Uri;

use super::Context;
use crate::client::{limited, time_of};
use crate::output::{self, Format};

/// Print a URL under which an image can be read for some time
///
/// For whatever reads over HTTP: virtual media of a server's BMC, iPXE, curl, a browser. Whoever has
/// the URL can read the image, and do nothing else; it cannot be taken back before its time.
#[derive(Debug, Args)]
pub(super) struct UrlArgs {
    /// A library path, a path on a mount, or an id
    image: String,
    /// How long it holds, as in 90m or 2d; 30 days at most
    #[arg(long, default_value = "4h", value_name = "TIME", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// At a host that has the image now, and not at the catalogue: for clients that follow no
    /// redirect. It does not move to another host when that one goes away
    #[arg(long)]
    agent: bool,
}

#[derive(Debug, Serialize)]
struct UrlJson {
    url: String,
    image_id: String,
    expire_time: String,
}

pub(super) async fn cmd_url(args: &UrlArgs, context: &Context) -> anyhow::Result<()> {
    let mut client = context.connect().await?;
    let (item, image) = client.image(&args.image).await?;
    let request = pb::SignUrlRequest { image_id: image.id.into(), ttl_seconds: args.ttl.as_secs() };
    let signed = client.library.sign_url(limited(request)).await.map_err(Refusal::from)?;
    let pb::SignedUrl { path, expire_time, agent_url } = signed.into_inner();
    let url = if args.agent {
        agent_url.ok_or_else(|| {
            let text = format!("no connected host has a sound copy of {}", item.path);
            Refusal::new(Reason::Unavailable, text)
        })?
    } else {
        format!("{}{path}", context.server.trim_end_matches('/'))
    };
    match context.format {
        Format::Text => {
            output::line(&output::plain(&url));
            if is_loopback(&url) {
                output::note(
                    "other hosts cannot use this URL: its address is this host's own; name the \
                     catalogue as others reach it (--server http://HOST:PORT)",
                );
            }
        }
        Format::Json => {
            let expire_time = expire_time.as_ref().map(time_of).unwrap_or_default();
            let (image_id, expire_time) = (image.id.to_string(), output::time(expire_time));
            output::json(&UrlJson { url, image_id, expire_time });
        }
    }
    Ok(())
}

fn is_loopback(url: &str) -> bool {
    let host = url.parse::<Uri>().ok().and_then(|url| Some(url.host()?.to_owned()));
    host.is_some_and(|host| {
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_this_host_alone_is_known() {
        for (url, expected) in [
            ("http://127.0.0.1:7430/content/x/a.iso?expires=1&signature=0", true),
            ("http://[::1]:7430/a", true),
            ("http://localhost:7430/a", true),
            ("http://10.0.0.1:7430/a", false),
            ("http://host-a:7430/a", false),
            ("nonsense", false),
        ] {
            assert_eq!(is_loopback(url), expected, "{url}");
        }
    }
}
