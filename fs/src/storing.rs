//! Storing one file without a mount: the same protocol, for a command that has all its bytes.

use std::sync::Arc;

use isotope_proto::refusal::{Reason, Refusal};
use isotope_proto::time::Timestamp;
use isotope_proto::tree::Attributes;
use isotope_proto::upload::UploadRequest;
use tokio::task::JoinHandle;
use tonic::transport::{Endpoint, Uri};

use crate::catalog::{self, Catalog};
use crate::error::FsError;
use crate::remote::Hosts;
use crate::stage::{Destination, Stage};
use crate::uploads::KEEP_EVERY;

/// A file on its way into the library. Dropped before it is published, nothing of it remains.
pub struct Storing {
    catalog: Catalog,
    to: Destination,
    name: String,
    stage: Stage,
    keeping: JoinHandle<()>,
}

impl Drop for Storing {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

impl Storing {
    /// Reserves the file, and opens the stream to the host that is to store it.
    ///
    /// # Errors
    /// As the catalogue refuses, and when the host cannot be reached.
    pub async fn begin(server: &Uri, request: UploadRequest) -> Result<Self, Refusal> {
        let catalog = Catalog::new(catalog::connect(Endpoint::from(server.clone())));
        let name = request.place.name.to_string();
        let (to, _) = catalog.reserve(request).await?;
        let stage = Stage::open(&Arc::<Hosts>::default(), &to).await.map_err(refusal)?;
        let (keeper, upload) = (catalog.clone(), to.upload);
        let keeping = tokio::spawn(async move {
            loop {
                tokio::time::sleep(KEEP_EVERY).await;
                // Told again in time.
                drop(keeper.keep(vec![upload]).await);
            }
        });
        Ok(Self { catalog, to, name, stage, keeping })
    }

    /// Sends bytes. A failure may be told with a later call.
    ///
    /// # Errors
    /// `NoSpace`, `ReadOnly`, `QuotaExceeded`, `TooLarge`, or that the host has gone.
    pub async fn write(&self, offset: u64, bytes: Vec<u8>) -> Result<(), Refusal> {
        self.stage.write(offset, bytes.into()).await.map_err(refusal)
    }

    /// Makes it durable and publishes it. Answered, it is in the library.
    ///
    /// # Errors
    /// As [`Storing::write`] and [`Storing::begin`]; then it is not published.
    pub async fn publish(self, modified: Timestamp) -> Result<(), Refusal> {
        let sealed = self.stage.seal(self.name.clone()).await.map_err(refusal)?;
        let set = Attributes { mode: None, modified: Some(modified) };
        let published = self.catalog.publish(self.to.upload, sealed, set).await;
        match published {
            Ok(_) => Ok(()),
            // Nothing may appear after an error.
            Err(error) => match self.catalog.abort(self.to.upload).await {
                Ok(true) => Ok(()),
                Ok(false) | Err(_) => Err(refusal(error)),
            },
        }
    }
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
