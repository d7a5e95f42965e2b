//! The stream on which one file's bytes go to its agent: requests in order, many under way, the
//! first failure kept. A writer is answered as soon as its bytes are on their way; what became of
//! them it hears with the next write, or at the latest at close.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use isotope_proto::id::{ImageId, UploadId, VolumeId};
use isotope_proto::passing::{Ask, Kind};
use isotope_proto::pb::stage_request::Request as R;
use isotope_proto::pb::{self, stage_reply};
use isotope_proto::refusal::Refusal;
use isotope_proto::upload::Sealed;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::error::FsError;
use crate::local;
use crate::remote::Hosts;

/// Requests on their way; the largest is 1 MiB.
const UNDER_WAY_MAX: usize = 16;
/// An agent that answers nothing for so long, while something is asked of it, has failed. A sync
/// of many gigabytes to a slow disk is one request.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Where an upload's bytes go.
#[derive(Debug, Clone)]
pub(crate) struct Destination {
    pub(crate) upload: UploadId,
    pub(crate) image: ImageId,
    pub(crate) volume: VolumeId,
    pub(crate) address: String,
}

/// How often that is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Answer = Result<stage_reply::Reply, FsError>;

/// One open stream.
pub(crate) struct Stage {
    requests: mpsc::Sender<pb::StageRequest>,
    turn: tokio::sync::Mutex<()>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Cancelled by the first failure that ends the stream.
    over: CancellationToken,
}

#[derive(Default)]
struct State {
    /// One a request, in order, and since when; writes have nobody waiting.
    waiting: VecDeque<(Instant, Option<oneshot::Sender<Answer>>)>,
    failure: Option<FsError>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waits_too_long(&self) -> bool {
        self.lock().waiting.front().is_some_and(|(since, _)| since.elapsed() > SILENCE_MAX)
    }

    fn fail(&self, error: &FsError) {
        let mut state = self.lock();
        state.failure.get_or_insert_with(|| error.clone());
        self.over.cancel();
        for waiting in state.waiting.drain(..).filter_map(|(_, waiting)| waiting) {
            // Whoever waited may have given up.
            let _ = waiting.send(Err(error.clone()));
        }
    }
}

impl Stage {
    pub(crate) async fn open(hosts: &Hosts, to: &Destination) -> Result<Self, FsError> {
        let (requests, stream) = mpsc::channel(UNDER_WAY_MAX);
        let open = pb::StageOpen {
            upload_id: to.upload.into(),
            image_id: to.image.into(),
            volume_id: to.volume.into(),
        };
        // The channel is new and has room.
        let _ = requests.try_send(pb::StageRequest { request: Some(R::Open(open)) });
        let replies = hosts.stage(&to.address, ReceiverStream::new(stream)).await?;
        let shared = Arc::<Shared>::default();
        let ask = Ask { kind: Kind::Staged, image: to.image, volume: to.volume };
        let Ok((file, _)) = local::descriptor(&to.address, ask).await else {
            tokio::spawn(hear(replies, Arc::clone(&shared)));
            return Ok(Self { requests, turn: tokio::sync::Mutex::default(), shared });
        };
        let (from_agent, agent_replies) = mpsc::channel(UNDER_WAY_MAX);
        tokio::spawn(async move {
            let mut replies = replies;
            // Ends with the stream, or with the thread that hears it.
            while let Some(reply) = replies.next().await {
                if from_agent.send(reply).await.is_err() {
                    return;
                }
            }
        });
        let agent = local::Agent { requests, replies: agent_replies };
        let (requests, in_turn) = mpsc::channel(UNDER_WAY_MAX);
        let (answer, answers) = mpsc::channel(UNDER_WAY_MAX);
        tokio::task::spawn_blocking(move || local::write_beside(&file, in_turn, agent, &answer));
        tokio::spawn(hear(ReceiverStream::new(answers), Arc::clone(&shared)));
        Ok(Self { requests, turn: tokio::sync::Mutex::default(), shared })
    }

    /// Sends a request in turn. Returns once it is on its way.
    async fn send(
        &self,
        request: R,
        answer: Option<oneshot::Sender<Answer>>,
    ) -> Result<(), FsError> {
        // Answers come in the order of requests, so the two queues must agree.
        let _turn = self.turn.lock().await;
        let permit = tokio::select! {
            permit = self.requests.reserve() => permit.ok(),
            () = self.shared.over.cancelled() => None,
        };
        {
            let mut state = self.shared.lock();
            if let Some(failure) = &state.failure {
                return Err(failure.clone());
            }
            let Some(permit) = permit else { return Err(lost()) };
            state.waiting.push_back((Instant::now(), answer));
            permit.send(pb::StageRequest { request: Some(request) });
        }
        Ok(())
    }

    async fn ask(&self, request: R) -> Answer {
        let (answer, answered) = oneshot::channel();
        self.send(request, Some(answer)).await?;
        let reply = answered.await.map_err(|_| lost())??;
        // A write before it may have failed without anybody waiting.
        match &self.shared.lock().failure {
            Some(failure) => Err(failure.clone()),
            None => Ok(reply),
        }
    }

    pub(crate) async fn write(&self, offset_bytes: u64, data: Bytes) -> Result<(), FsError> {
        self.send(R::Write(pb::StageWrite { offset_bytes, data }), None).await
    }

    pub(crate) async fn truncate(&self, size_bytes: u64) -> Result<(), FsError> {
        self.ask(R::Truncate(pb::StageTruncate { size_bytes })).await.map(drop)
    }

    pub(crate) async fn allocate(
        &self,
        offset_bytes: u64,
        length_bytes: u64,
    ) -> Result<(), FsError> {
        self.ask(R::Allocate(pb::StageAllocate { offset_bytes, length_bytes })).await.map(drop)
    }

    pub(crate) async fn read(
        &self,
        offset_bytes: u64,
        length_bytes: u64,
    ) -> Result<Bytes, FsError> {
        match self.ask(R::Read(pb::StageRead { offset_bytes, length_bytes })).await? {
            stage_reply::Reply::Data(it) => Ok(it.data),
            _ => Err(lost()),
        }
    }

    pub(crate) async fn sync(&self) -> Result<(), FsError> {
        self.ask(R::Sync(pb::StageSync {})).await.map(drop)
    }

    /// Everything before it is durable, and nothing follows.
    pub(crate) async fn seal(&self, filename: String) -> Result<Sealed, FsError> {
        match self.ask(R::Seal(pb::StageSeal { filename })).await? {
            stage_reply::Reply::Sealed(sealed) => {
                Sealed::try_from(sealed).map_err(|error| FsError::Storage(error.to_string()))
            }
            _ => Err(lost()),
        }
    }
}

fn lost() -> FsError {
    FsError::Unreachable("the agent that stores the file has gone".to_owned())
}

async fn hear(
    mut replies: impl Stream<Item = Result<pb::StageReply, tonic::Status>> + Unpin,
    shared: Arc<Shared>,
) {
    loop {
        let reply = match timeout(LOOK_EVERY, replies.next()).await {
            Ok(Some(Ok(pb::StageReply { reply: Some(reply) }))) => reply,
            Ok(_) => return shared.fail(&lost()),
            Err(_) if shared.waits_too_long() => return shared.fail(&FsError::TimedOut),
            Err(_) => continue,
        };
        let answer = match reply {
            stage_reply::Reply::Failed(failed) => Err(FsError::from(Refusal::from(failed))),
            reply => Ok(reply),
        };
        let waiting = {
            let mut state = shared.lock();
            if let Err(error) = &answer {
                state.failure.get_or_insert_with(|| error.clone());
            }
            state.waiting.pop_front().and_then(|(_, waiting)| waiting)
        };
        if let Some(waiting) = waiting {
            let _ = waiting.send(answer);
        }
    }
}
