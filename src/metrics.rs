//! A mount's numbers for Prometheus: OpenMetrics text at `/metrics`, over the least of HTTP/1.1
//! (RFC 9112) that a scraper needs. It names the numbers, and knows nothing of how they come about.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use isotope_fs::{Reads, Tally};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::debug;

/// Scrapers come one at a time, every few seconds; more wait to be accepted.
const CONNECTIONS_MAX: usize = 8;
/// Whoever connects asks at once, and takes the answer.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(5);
/// A request has a line and some fields; a scraper's are a few hundred bytes.
const REQUEST_BYTES_MAX: usize = 8 << 10;
/// The type that OpenMetrics 1.0 has.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where a mount's numbers can be fetched.
pub(crate) struct Metrics {
    listener: TcpListener,
    registry: Registry,
}

impl Metrics {
    /// # Errors
    /// When the address is in use, or not this host's.
    pub(crate) async fn bind(address: SocketAddr, tally: Tally) -> anyhow::Result<Self> {
        let bound = TcpListener::bind(address).await;
        let listener = bound.with_context(|| {
            format!("listening on {address} for metrics; each mount needs a port of its own")
        })?;
        let mut registry = Registry::with_prefix("isotope_fs");
        registry.register_collector(Box::new(ReadsCollector(tally)));
        Ok(Self { listener, registry })
    }

    pub(crate) fn url(&self) -> anyhow::Result<String> {
        Ok(format!("http://{}/metrics", self.listener.local_addr()?))
    }

    /// Answers for as long as it is awaited.
    pub(crate) async fn serve(self) {
        let (registry, connections) =
            (Arc::new(self.registry), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
        while let Ok(permit) = Arc::clone(&connections).acquire_owned().await {
            let Ok((stream, _)) = self.listener.accept().await else {
                // Of descriptors there are none left; there will be.
                tokio::time::sleep(CONNECTION_TIME_MAX).await;
                continue;
            };
            let registry = Arc::clone(&registry);
            tokio::spawn(async move {
                let _permit = permit;
                let answered = timeout(CONNECTION_TIME_MAX, answer(stream, &registry)).await;
                if let Ok(Err(error)) = answered {
                    debug!(%error, "a scraper went away");
                }
            });
        }
    }
}

/// One request, one answer, and the end.
async fn answer(mut stream: TcpStream, registry: &Registry) -> anyhow::Result<()> {
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.windows(4).any(|it| it == b"\r\n\r\n") {
        match stream.read(&mut piece).await? {
            0 => return Ok(()),
            len => request.extend_from_slice(&piece[..len]),
        }
        if request.len() > REQUEST_BYTES_MAX {
            stream.write_all(&response("431 Request Header Fields Too Large", "", true)).await?;
            return Ok(());
        }
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let answer = respond(&String::from_utf8_lossy(line), registry)?;
    stream.write_all(&answer).await?;
    Ok(stream.shutdown().await?)
}

/// What a request line is answered with.
fn respond(line: &str, registry: &Registry) -> Result<Vec<u8>, fmt::Error> {
    let mut words = line.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    let with_body = match method {
        "GET" => true,
        "HEAD" => false,
        _ => return Ok(response("405 Method Not Allowed", "only GET and HEAD\n", true)),
    };
    if path != "/metrics" {
        return Ok(response("404 Not Found", "the numbers are at /metrics\n", with_body));
    }
    let mut text = String::new();
    encode(&mut text, registry)?;
    Ok(response("200 OK", &text, with_body))
}

fn response(status: &str, body: &str, with_body: bool) -> Vec<u8> {
    let kind = if status.starts_with('2') { CONTENT_TYPE } else { "text/plain; charset=utf-8" };
    let len = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len}\r\n\
         Allow: GET, HEAD\r\nConnection: close\r\n\r\n"
    );
    let body = if with_body { body } else { "" };
    [head.as_bytes(), body.as_bytes()].concat()
}

#[derive(Debug)]
struct ReadsCollector(Tally);

impl Collector for ReadsCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let reads: Reads = self.0.told();
        let open = [("kernel", reads.open_passed_through), ("mount", reads.open_ordinary)];
        let mut gauge = encoder.encode_descriptor(
            "open_images",
            "Images open for reading now, by who reads them",
            None,
            MetricType::Gauge,
        )?;
        for (reader, count) in open {
            gauge.encode_family(&[("reader", reader)])?.encode_gauge(&saturated(count))?;
        }
        let mut counted = |name: &str, help: &str, unit: Option<&Unit>, count: u64| {
            encoder
                .encode_descriptor(name, help, unit, MetricType::Counter)?
                .encode_counter::<NoLabelSet, _, u64>(&count, None)
        };
        counted(
            "opens_passed_through",
            "Images opened for the kernel to read from a file of this host",
            None,
            reads.opens_passed_through,
        )?;
        counted(
            "host_read",
            "Bytes of images fetched from agents",
            Some(&Unit::Bytes),
            reads.bytes_from_hosts,
        )?;
        counted("failed_reads", "Requests to read that failed", None, reads.reads_failed)?;
        counted("lost_hosts", "Times that a host did not answer", None, reads.hosts_lost)?;
        counted("hedges", "Times that another host was asked as well", None, reads.hedges)?;
        counted("wrong_copies", "Times that bytes were wrong", None, reads.wrong_copies)?;
        let mut ordinary = encoder.encode_descriptor(
            "opens_ordinary",
            "Images opened to be read through the mount, by why",
            None,
            MetricType::Counter,
        )?;
        for (reason, count) in reads.opens_ordinary.by_reason() {
            ordinary
                .encode_family(&[("reason", reason)])?
                .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
        }
        Ok(())
    }
}

/// Gauges are signed.
fn saturated(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> Registry {
        let mut registry = Registry::with_prefix("isotope_fs");
        registry.register_collector(Box::new(ReadsCollector(Tally::default())));
        registry
    }

    #[test]
    fn the_numbers_are_open_metrics() {
        let mut text = String::new();
        encode(&mut text, &registry()).expect("text");
        for line in [
            "# TYPE isotope_fs_open_images gauge",
            "isotope_fs_open_images{reader=\"kernel\"} 0",
            "# TYPE isotope_fs_opens_passed_through counter",
            "isotope_fs_opens_passed_through_total 0",
            "# UNIT isotope_fs_host_read_bytes bytes",
            "isotope_fs_host_read_bytes_total 0",
            "isotope_fs_failed_reads_total 0",
            "isotope_fs_opens_ordinary_total{reason=\"touched\"} 0",
        ] {
            assert!(text.lines().any(|it| it == line), "{line}\n{text}");
        }
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn each_request_has_its_answer() {
        let registry = registry();
        for (line, status, body) in [
            ("GET /metrics HTTP/1.1", "200 OK", true),
            ("GET /metrics?x=1 HTTP/1.1", "200 OK", true),
            ("HEAD /metrics HTTP/1.1", "200 OK", false),
            ("GET / HTTP/1.1", "404 Not Found", true),
            ("POST /metrics HTTP/1.1", "405 Method Not Allowed", true),
            ("", "405 Method Not Allowed", true),
        ] {
            let answer = String::from_utf8(respond(line, &registry).expect("text")).expect("text");
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{line}: {answer}");
            let (head, found) = answer.split_once("\r\n\r\n").expect("a head");
            assert_eq!(!found.is_empty(), body, "{line}: {answer}");
            let length = format!("Content-Length: {}", found.len());
            assert!(!body || head.contains(&length), "{line}: {answer}");
        }
    }
}
