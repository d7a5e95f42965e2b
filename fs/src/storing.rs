//! Storing one file without a mount: the same protocol, for a command that has all its bytes.

use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::time::Timestamp;
use isotope_proto::tree::Attributes;
use isotope_proto::upload::UploadRequest;
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;
use tonic::transport::{Endpoint, Uri};

use crate::catalog::{self, Access, Catalog};
use crate::error::FsError;
use crate::remote::Hosts;
use crate::stage::Stage;
use crate::uploads::KEEP_EVERY;

/// A file on its way into the library. Nothing of it remains unless it is published; [`abort`]
/// makes its name free at once, else its lease does.
///
/// [`abort`]: Storing::abort
pub struct Storing {
    catalog: Catalog,
    request: UploadRequest,
    stage: OnceCell<Stage>,
    keeping: JoinHandle<()>,
}

impl Drop for Storing {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

impl Storing {
    /// Asks nobody yet, so that there is always something to abort.
    #[must_use]
    pub fn new(server: &Uri, request: UploadRequest) -> Self {
        let channel = catalog::connect(Endpoint::from(server.clone()));
        let catalog = Catalog::new(channel, Access::Changes);
        let (keeper, upload) = (catalog.clone(), request.id);
        let keeping = tokio::spawn(async move {
            loop {
                tokio::time::sleep(KEEP_EVERY).await;
                // Told again in time.
                drop(keeper.keep(vec![upload]).await);
            }
        });
        Self { catalog, request, stage: OnceCell::new(), keeping }
    }

    /// Reserves the file, and opens the stream to the host that is to store it.
    ///
    /// # Errors
    /// As the catalogue refuses, and when the host cannot be reached.
    pub async fn begin(&self) -> Result<(), Refusal> {
        self.stage().await.map(drop)
    }

    async fn stage(&self) -> Result<&Stage, Refusal> {
        let open = || async {
            let (to, _) = self.catalog.reserve(self.request.clone()).await?;
            Stage::open(&Hosts::default(), &to).await.map_err(refusal)
        };
        self.stage.get_or_try_init(open).await
    }

    /// Sends bytes. A failure may be told with a later call.
    ///
    /// # Errors
    /// `NoSpace`, `ReadOnly`, `QuotaExceeded`, `TooLarge`, or that the host has gone.
    pub async fn write(&self, offset: u64, bytes: Vec<u8>) -> Result<(), Refusal> {
        self.stage().await?.write(offset, bytes.into()).await.map_err(refusal)
    }

    /// Makes it durable and publishes it. Answered, it is in the library.
    ///
    /// # Errors
    /// As [`Storing::write`] and [`Storing::begin`]; whether it is published, [`Storing::abort`]
    /// tells.
    pub async fn publish(&self, modified: Timestamp) -> Result<(), Refusal> {
        let name = self.request.place.name.to_string();
        let sealed = self.stage().await?.seal(name).await.map_err(refusal)?;
        let set = Attributes { mode: None, modified: Some(modified) };
        self.catalog.publish(self.request.id, sealed, set).await.map(drop).map_err(refusal)
    }

    /// Gives it up, after a failure or unfinished, within two seconds: its name is free, and
    /// nothing appears afterwards.
    pub async fn abort(self) -> Aborted {
        match self.catalog.abort(self.request.id).await {
            Ok(true) => Aborted::TooLate,
            // Unreachable: its lease ends there, and with it the upload.
            Ok(false) | Err(_) => Aborted::InTime,
        }
    }
}

/// What came of giving up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aborted {
    InTime,
    /// It was published before, and is in the library.
    TooLate,
}

fn refusal(error: FsError) -> Refusal {
    let reason = match &error {
        FsError::NoSpace => Reason::NoSpace,
        FsError::ReadOnly => Reason::ReadOnly,
        FsError::QuotaExceeded => Reason::QuotaExceeded,
        FsError::TooLarge => Reason::TooLarge,
        FsError::NotFound => Reason::NotFound,
        FsError::TimedOut => Reason::TimedOut,
        FsError::Storage(_) => Reason::Storage,
        _ => Reason::Unavailable,
    };
    Refusal::new(reason, error.to_string())
}
