//! Calls to agents at their advertised addresses, each with a deadline: what cannot wait for, or
//! does not belong on, an agent's session.

use std::time::Duration;

use isotope_proto::change::Record;
use isotope_proto::cluster::Node;
use isotope_proto::id::{NodeId, VolumeId};
use isotope_proto::pb;
use isotope_proto::pb::host_service_client::HostServiceClient;
use isotope_proto::pb::sidecar_part::Part;
use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::sidecar::LibraryCopy;
use isotope_proto::wire::Malformed;
use tonic::transport::{Channel, Endpoint};

/// For an agent that is there, on one network.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// An agent that answers no HTTP/2 ping for so long is gone: what has no deadline ends with it.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// For one call; a walk of a large directory is the longest.
const CALL_MAX: Duration = Duration::from_secs(60);
/// A disk that takes longer to write a line is in trouble.
const NONCE_MAX: Duration = Duration::from_secs(5);
/// Between two parts of a copy of the library: each copy is read whole before its first.
const PART_MAX: Duration = Duration::from_secs(30);
/// A piece holds a thousand records of some 300 bytes; names may be long.
const PIECE_BYTES_MAX: usize = 16 << 20;

/// One agent, connected to.
pub(crate) struct Host {
    client: HostServiceClient<Channel>,
    name: String,
}

impl Host {
    pub(crate) async fn connect(node: &Node) -> Result<Self, Refusal> {
        let unreachable = |why: String| {
            let text =
                format!("cannot reach the agent of {} at {}: {why}", node.name, node.address);
            Refusal::new(Reason::Unavailable, text)
        };
        let endpoint = Endpoint::from_shared(format!("http://{}", node.address))
            .map_err(|error| unreachable(error.to_string()))?
            .connect_timeout(CONNECT_MAX)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE);
        let connected = tokio::time::timeout(CONNECT_MAX, endpoint.connect()).await;
        let channel = connected
            .map_err(|_| unreachable("it does not answer".to_owned()))?
            .map_err(|error| unreachable(error.to_string()))?;
        Ok(Self { client: HostServiceClient::new(channel), name: node.name.clone() })
    }

    fn failed(&self, status: tonic::Status) -> Refusal {
        let refusal = Refusal::from(status);
        Refusal::new(refusal.reason, format!("{}: {}", self.name, refusal.text))
    }

    /// Asks it to connect to the catalogue now.
    pub(crate) async fn reconnect(&mut self) -> Result<(), Refusal> {
        let request = limited(pb::ReconnectRequest {}, CONNECT_MAX);
        self.client.reconnect(request).await.map(drop).map_err(|error| self.failed(error))
    }

    pub(crate) async fn inspect(
        &mut self,
        dir: &str,
        layout: Option<pb::Layout>,
        count: bool,
    ) -> Result<pb::InspectReply, Refusal> {
        let request = pb::InspectRequest { dir: dir.to_owned(), layout, count };
        let reply = self.client.inspect(limited(request, CALL_MAX)).await;
        Ok(reply.map_err(|error| self.failed(error))?.into_inner())
    }

    pub(crate) async fn attach(
        &mut self,
        dir: &str,
        pool: &str,
        layout: Option<pb::Layout>,
    ) -> Result<VolumeId, Refusal> {
        let request = pb::AttachRequest { dir: dir.to_owned(), pool: pool.to_owned(), layout };
        let reply = self.client.attach(limited(request, CALL_MAX)).await;
        let reply = reply.map_err(|error| self.failed(error))?.into_inner();
        Ok(VolumeId::try_from(&*reply.volume_id).map_err(Malformed::from)?)
    }

    pub(crate) async fn detach(&mut self, volume: VolumeId) -> Result<(), Refusal> {
        let request = limited(pb::DetachRequest { volume_id: volume.into() }, CALL_MAX);
        self.client.detach(request).await.map(drop).map_err(|error| self.failed(error))
    }

    pub(crate) async fn write_nonce(
        &mut self,
        volume: VolumeId,
        nonce: Vec<u8>,
    ) -> Result<(), Refusal> {
        let request = pb::WriteNonceRequest { volume_id: volume.into(), nonce };
        let written = self.client.write_nonce(limited(request, NONCE_MAX)).await;
        written.map(drop).map_err(|error| self.failed(error))
    }

    /// The nonce that another node wrote.
    pub(crate) async fn read_nonce(
        &mut self,
        volume: VolumeId,
        writer: NodeId,
    ) -> Result<Vec<u8>, Refusal> {
        let request = pb::ReadNonceRequest { volume_id: volume.into(), node_id: writer.into() };
        let reply = self.client.read_nonce(limited(request, NONCE_MAX)).await;
        Ok(reply.map_err(|error| self.failed(error))?.into_inner().nonce)
    }
}

impl Host {
    /// Its stream is the caller's to follow; it has no deadline, for a file may be large.
    pub(crate) async fn verify(
        &mut self,
        request: pb::VerifyRequest,
    ) -> Result<tonic::Streaming<pb::VerifyEvent>, Refusal> {
        let reply = self.client.verify(request).await;
        Ok(reply.map_err(|error| self.failed(error))?.into_inner())
    }

    /// The copies of the library in a volume's sidecar, and what is wrong with others.
    pub(crate) async fn read_sidecar(
        &mut self,
        volume: VolumeId,
    ) -> Result<(Vec<LibraryCopy>, Vec<String>), Refusal> {
        let request = pb::ReadSidecarRequest { volume_id: volume.into() };
        let mut client = self.client.clone().max_decoding_message_size(PIECE_BYTES_MAX);
        let asked = answered(PART_MAX, client.read_sidecar(request)).await?;
        let mut parts = asked.map_err(|status| self.failed(status))?.into_inner();
        let (mut copies, mut problems) = (Vec::<LibraryCopy>::new(), Vec::new());
        while let Some(part) =
            answered(PART_MAX, parts.message()).await?.map_err(|status| self.failed(status))?
        {
            match part.part {
                Some(Part::Mark(mark)) => {
                    copies.push(LibraryCopy { mark: mark.try_into()?, records: Vec::new() });
                }
                Some(Part::Records(records)) => {
                    let copy = copies.last_mut().ok_or(Malformed::Missing("mark"))?;
                    for record in records.records {
                        copy.records.push(Record::try_from(record)?);
                    }
                }
                Some(Part::Problem(problem)) => problems.push(problem),
                // From a newer agent.
                None => {}
            }
        }
        Ok((copies, problems))
    }
}

async fn answered<T>(most: Duration, answer: impl Future<Output = T>) -> Result<T, Refusal> {
    let late = |_| Refusal::new(Reason::TimedOut, "its disk does not answer");
    tokio::time::timeout(most, answer).await.map_err(late)
}

fn limited<T>(message: T, most: Duration) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(most);
    request
}
