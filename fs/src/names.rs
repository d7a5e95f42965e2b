//! What the mount does to names: folders made and removed, images renamed, linked and unlinked, files
//! that are being written too. What is meant by a name in a view is `viewing.rs`'s.

use isotope_proto::id::Ino;
use isotope_proto::name::EntryName;
use isotope_proto::tree::RenameMode;
use tokio::time::timeout;

use crate::catalog::CHANGE_DEADLINE;
use crate::error::FsError;
use crate::files::{Answer, Files};
use crate::mirror::Source;
use crate::views::is_entrance;

impl Files {
    pub(crate) async fn make_folder(
        &self,
        parent: Ino,
        name: &EntryName,
        mode: u32,
    ) -> Result<Answer, FsError> {
        self.check_in_library(parent)?;
        self.make((parent, name), self.catalog.make_folder(parent, name, mode)).await
    }

    pub(crate) async fn remove_folder(&self, parent: Ino, name: &EntryName) -> Result<(), FsError> {
        self.check_in_library(parent)?;
        if is_entrance(parent, name.as_str()) {
            return Err(FsError::NotPermitted);
        }
        self.change(self.catalog.remove_folder(parent, name)).await
    }

    /// Views have no folders of their own making, and images there no names that one could add.
    fn check_in_library(&self, folder: Ino) -> Result<(), FsError> {
        if self.views.at(folder).is_some() { Err(FsError::NotPermitted) } else { Ok(()) }
    }

    /// What `open(O_CREAT)` ends with that could not make its file. Where something just got the
    /// name, and that will do (no `O_EXCL`), Linux looks the path up again and opens it.
    pub(crate) async fn not_created(
        &self,
        error: FsError,
        (parent, name): (Ino, &EntryName),
        flags: i32,
    ) -> FsError {
        match (error, flags & libc::O_EXCL != 0) {
            (FsError::IsAFolder, true) => FsError::Exists,
            (FsError::Exists, false) => {
                let shown = timeout(CHANGE_DEADLINE, self.mirror.shows(parent, name.as_str()));
                if shown.await.is_ok() { FsError::Stale } else { FsError::Exists }
            }
            (error, _) => error,
        }
    }

    /// Gives an image one more name.
    pub(crate) async fn link(&self, ino: Ino, to: (Ino, &EntryName)) -> Result<Answer, FsError> {
        self.check_in_library(to.0)?;
        if self.uploads.named(to.0, to.1.as_str()).is_some() {
            return Err(FsError::Exists);
        }
        // What is being written has no bytes yet that another name could lead to.
        if let Some(upload) = self.uploads.get(ino) {
            self.uploads.commit_if_idle(&upload).await?;
            if !upload.is_over() {
                return Err(FsError::InUse);
            }
        }
        self.make(to, self.catalog.link(ino, to)).await
    }

    /// Removes a name: of an image, of a file that is being written, or of both.
    pub(crate) async fn unlink(&self, parent: Ino, name: &EntryName) -> Result<(), FsError> {
        let behind = self.behind(parent, name).await?;
        behind.files.unlink_in_library(behind.at()).await
    }

    async fn unlink_in_library(&self, (parent, name): (Ino, &EntryName)) -> Result<(), FsError> {
        // What it leads to now: as soon as its writer has lost the name it may be somebody else's.
        let listed = self.mirror.tree().folder(parent).and_then(|it| it.child(name.as_str()));
        let mut removed = false;
        if let Some(upload) = self.uploads.named(parent, name.as_str()) {
            removed = upload.remove_name().await?;
            upload.left();
        }
        if removed && listed.is_none() {
            return Ok(());
        }
        self.change(self.catalog.remove(parent, name)).await
    }

    pub(crate) async fn rename(
        &self,
        from: (Ino, &EntryName),
        to: (Ino, &EntryName),
        mode: RenameMode,
    ) -> Result<(), FsError> {
        if self.is_kept_name(from.0, from.1) {
            return Err(FsError::NotPermitted);
        }
        let (from, to) = (self.behind(from.0, from.1).await?, self.behind(to.0, to.1).await?);
        let source = match (from.files.source, to.files.source) {
            (one, other) if one == other => one,
            // The kernel keeps one of the two folders locked, and is told when it is answered.
            (_, _) => Source::Feed,
        };
        let files = Self { source, ..self.clone() };
        files.rename_in_library(from.at(), to.at(), mode).await
    }

    async fn rename_in_library(
        &self,
        from: (Ino, &EntryName),
        to: (Ino, &EntryName),
        mode: RenameMode,
    ) -> Result<(), FsError> {
        // Made, closed, and not written: meant as it is.
        for (folder, name) in [from, to] {
            if let Some(idle) = self.uploads.named(folder, name.as_str()) {
                self.uploads.commit_if_idle(&idle).await?;
            }
        }
        if mode == RenameMode::Exchange && self.uploads.named(to.0, to.1.as_str()).is_some() {
            return Err(FsError::InUse);
        }
        let listed = self.mirror.tree().folder(from.0).and_then(|it| it.child(from.1.as_str()));
        match (listed, self.uploads.named(from.0, from.1.as_str())) {
            (_, None) => {}
            // Which of the two is meant? What replaces the image has its name, but not yet.
            (Some(_), Some(_)) => return Err(FsError::InUse),
            (None, Some(_)) if mode == RenameMode::Exchange => return Err(FsError::InUse),
            (None, Some(upload)) => {
                upload.rename(to, mode).await?;
                [from.0, to.0].iter().for_each(|folder| self.mirror.tell_listing(*folder));
                return Ok(());
            }
        }
        self.change(self.catalog.rename(from, to, mode)).await
    }
}
