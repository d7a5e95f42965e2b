//! Uploads, staging, tasks, trash.

use super::facts::{facts_in, facts_out};
use super::tree::format_in;
use super::{Malformed, each, required, time_in, time_out};
use crate::id::{ImageId, UploadId};
use crate::name::VolumePath;
use crate::pb;
use crate::refusal::{Reason, Refusal};
use crate::tree::Attributes;
use crate::upload::{Existing, FileTask, FileTaskKind, Sealed, TaskDone, Trashed, UploadRequest};

impl From<UploadRequest> for pb::BeginUploadRequest {
    fn from(request: UploadRequest) -> Self {
        Self {
            upload_id: request.id.into(),
            place: Some(request.place.into()),
            mode: request.mode,
            pool: request.pool,
            host: request.host,
            replace: request.existing != Existing::Refuse,
            size_bytes: request.size_bytes,
            rewrite: request.existing == Existing::Rewrite,
        }
    }
}

impl TryFrom<pb::BeginUploadRequest> for UploadRequest {
    type Error = Malformed;
    fn try_from(request: pb::BeginUploadRequest) -> Result<Self, Malformed> {
        Ok(Self {
            id: UploadId::try_from(&*request.upload_id)?,
            place: request.place.try_into()?,
            mode: request.mode & 0o7777,
            pool: request.pool,
            host: request.host,
            existing: match (request.replace, request.rewrite) {
                (false, _) => Existing::Refuse,
                (true, false) => Existing::Replace,
                (true, true) => Existing::Rewrite,
            },
            size_bytes: request.size_bytes,
        })
    }
}

/// A sealed file as the catalogue is asked to publish it.
#[must_use]
pub fn publish_request(
    upload: UploadId,
    sealed: Sealed,
    set: Attributes,
) -> pb::PublishUploadRequest {
    pb::PublishUploadRequest {
        upload_id: upload.into(),
        stamp: Some(sealed.stamp.into()),
        path: sealed.path.to_string(),
        format: pb::ImageFormat::from(sealed.format).into(),
        os: Some(sealed.os.into()),
        facts: facts_out(sealed.facts),
        mode: set.mode,
        modify_time: set.modified.and_then(time_out),
    }
}

/// What the writer set beside the bytes.
pub fn published_attributes(request: &pb::PublishUploadRequest) -> Attributes {
    Attributes {
        mode: request.mode.map(|mode| mode & 0o7777),
        modified: time_in("modify_time", request.modify_time).ok(),
    }
}

impl From<pb::SetAttributesRequest> for Attributes {
    fn from(request: pb::SetAttributesRequest) -> Self {
        Self {
            mode: request.mode.map(|mode| mode & 0o7777),
            modified: time_in("modify_time", request.modify_time).ok(),
        }
    }
}

impl TryFrom<pb::PublishUploadRequest> for Sealed {
    type Error = Malformed;
    fn try_from(request: pb::PublishUploadRequest) -> Result<Self, Malformed> {
        Ok(Self {
            stamp: required("upload.stamp", request.stamp)?.into(),
            path: VolumePath::parse(&request.path)?,
            format: format_in(request.format)?,
            os: required("upload.os", request.os)?.into(),
            facts: facts_in(request.facts),
        })
    }
}

impl From<Sealed> for pb::StageSealed {
    fn from(sealed: Sealed) -> Self {
        Self {
            stamp: Some(sealed.stamp.into()),
            path: sealed.path.to_string(),
            format: pb::ImageFormat::from(sealed.format).into(),
            os: Some(sealed.os.into()),
            facts: facts_out(sealed.facts),
        }
    }
}

impl TryFrom<pb::StageSealed> for Sealed {
    type Error = Malformed;
    fn try_from(sealed: pb::StageSealed) -> Result<Self, Malformed> {
        Ok(Self {
            stamp: required("sealed.stamp", sealed.stamp)?.into(),
            path: VolumePath::parse(&sealed.path)?,
            format: format_in(sealed.format)?,
            os: required("sealed.os", sealed.os)?.into(),
            facts: facts_in(sealed.facts),
        })
    }
}

/// A failed write, as a writer is told.
impl From<Refusal> for pb::StageFailed {
    fn from(refusal: Refusal) -> Self {
        let reason = match refusal.reason {
            Reason::NoSpace => pb::StageFailure::NoSpace,
            Reason::ReadOnly => pb::StageFailure::ReadOnly,
            Reason::QuotaExceeded => pb::StageFailure::Quota,
            Reason::TooLarge => pb::StageFailure::TooLarge,
            _ => pb::StageFailure::Unspecified,
        };
        Self { reason: reason.into(), text: refusal.text }
    }
}

impl From<pb::StageFailed> for Refusal {
    fn from(failed: pb::StageFailed) -> Self {
        let reason = match failed.reason() {
            pb::StageFailure::NoSpace => Reason::NoSpace,
            pb::StageFailure::ReadOnly => Reason::ReadOnly,
            pb::StageFailure::Quota => Reason::QuotaExceeded,
            pb::StageFailure::TooLarge => Reason::TooLarge,
            pb::StageFailure::Unspecified => Reason::Storage,
        };
        Self::new(reason, failed.text)
    }
}

impl From<FileTask> for pb::FileTask {
    fn from(task: FileTask) -> Self {
        let kind = match task.kind {
            FileTaskKind::Finish => pb::FileTaskKind::Finish,
            FileTaskKind::Trash => pb::FileTaskKind::Trash,
            FileTaskKind::Restore => pb::FileTaskKind::Restore,
            FileTaskKind::Purge => pb::FileTaskKind::Purge,
        };
        Self {
            kind: kind.into(),
            image_id: task.image.into(),
            path: task.path.to_string(),
            stamp: Some(task.stamp.into()),
        }
    }
}

impl TryFrom<pb::FileTask> for FileTask {
    type Error = Malformed;
    fn try_from(task: pb::FileTask) -> Result<Self, Malformed> {
        let kind = match task.kind() {
            pb::FileTaskKind::Finish => FileTaskKind::Finish,
            pb::FileTaskKind::Trash => FileTaskKind::Trash,
            pb::FileTaskKind::Restore => FileTaskKind::Restore,
            pb::FileTaskKind::Purge => FileTaskKind::Purge,
            pb::FileTaskKind::Unspecified => {
                return Err(Malformed::Unknown { field: "task.kind", value: task.kind.into() });
            }
        };
        Ok(Self {
            kind,
            image: ImageId::try_from(&*task.image_id)?,
            path: VolumePath::parse(&task.path)?,
            stamp: required("task.stamp", task.stamp)?.into(),
        })
    }
}

impl TryFrom<pb::FileTasks> for Vec<FileTask> {
    type Error = Malformed;
    fn try_from(tasks: pb::FileTasks) -> Result<Self, Malformed> {
        each(tasks.tasks)
    }
}

impl From<TaskDone> for pb::TaskDone {
    fn from(done: TaskDone) -> Self {
        Self { task: Some(done.task.into()), path: done.path.map(|path| path.to_string()) }
    }
}

impl TryFrom<pb::TaskDone> for TaskDone {
    type Error = Malformed;
    fn try_from(done: pb::TaskDone) -> Result<Self, Malformed> {
        Ok(Self {
            task: required("done.task", done.task)?.try_into()?,
            path: done.path.map(|path| VolumePath::parse(&path)).transpose()?,
        })
    }
}

impl From<Trashed> for pb::Trashed {
    fn from(trashed: Trashed) -> Self {
        Self {
            image: Some(trashed.image.into()),
            paths: trashed.paths,
            delete_time: time_out(trashed.deleted),
            expire_time: time_out(trashed.expires),
        }
    }
}

impl TryFrom<pb::Trashed> for Trashed {
    type Error = Malformed;
    fn try_from(trashed: pb::Trashed) -> Result<Self, Malformed> {
        Ok(Self {
            image: required("trashed.image", trashed.image)?.try_into()?,
            paths: trashed.paths,
            deleted: time_in("trashed.delete_time", trashed.delete_time)?,
            expires: time_in("trashed.expire_time", trashed.expire_time)?,
        })
    }
}
