//! Facts. What a newer peer says and we do not know is left out: it decides nothing.

use prost::Message as _;

use super::Malformed;
use crate::facts::{
    Appliance, Boot, Candidate, Disk, Extensions, Facts, Marker, PartitionTable, Source,
};
use crate::image::Os;
use crate::pb;

impl From<Facts> for pb::Facts {
    fn from(facts: Facts) -> Self {
        let partition_table = match facts.partitions {
            None => pb::PartitionTable::Unspecified,
            Some(PartitionTable::Mbr) => pb::PartitionTable::Mbr,
            Some(PartitionTable::Gpt) => pb::PartitionTable::Gpt,
        };
        Self {
            volume_label: facts.volume_label,
            system_id: facts.system_id,
            publisher_id: facts.publisher_id,
            application_id: facts.application_id,
            volume_size_bytes: facts.volume_size_bytes,
            joliet: facts.extensions.joliet,
            rock_ridge: facts.extensions.rock_ridge,
            udf: facts.extensions.udf,
            boots_bios: facts.boot.bios,
            boots_uefi: facts.boot.uefi,
            partition_table: partition_table.into(),
            virtual_size_bytes: facts.virtual_size_bytes,
            appliance: facts.appliance.map(Into::into),
            markers: facts.markers.into_iter().map(Into::into).collect(),
            candidates: facts.candidates.into_iter().map(Into::into).collect(),
            database: facts.database,
            problem: facts.problem,
        }
    }
}

impl From<pb::Facts> for Facts {
    fn from(facts: pb::Facts) -> Self {
        let partitions = match facts.partition_table() {
            pb::PartitionTable::Unspecified => None,
            pb::PartitionTable::Mbr => Some(PartitionTable::Mbr),
            pb::PartitionTable::Gpt => Some(PartitionTable::Gpt),
        };
        Self {
            volume_label: facts.volume_label,
            system_id: facts.system_id,
            publisher_id: facts.publisher_id,
            application_id: facts.application_id,
            volume_size_bytes: facts.volume_size_bytes,
            extensions: Extensions {
                joliet: facts.joliet,
                rock_ridge: facts.rock_ridge,
                udf: facts.udf,
            },
            boot: Boot { bios: facts.boots_bios, uefi: facts.boots_uefi },
            partitions,
            virtual_size_bytes: facts.virtual_size_bytes,
            appliance: facts.appliance.map(Into::into),
            markers: facts.markers.into_iter().map(Into::into).collect(),
            candidates: facts.candidates.into_iter().map(Into::into).collect(),
            database: facts.database,
            problem: facts.problem,
        }
    }
}

impl From<Appliance> for pb::Appliance {
    fn from(appliance: Appliance) -> Self {
        let disk = |it: Disk| pb::Disk { name: it.name, capacity_bytes: it.capacity_bytes };
        Self {
            name: appliance.name,
            os: appliance.os,
            memory_bytes: appliance.memory_bytes,
            disks: appliance.disks.into_iter().map(disk).collect(),
        }
    }
}

impl From<pb::Appliance> for Appliance {
    fn from(appliance: pb::Appliance) -> Self {
        let disk = |it: pb::Disk| Disk { name: it.name, capacity_bytes: it.capacity_bytes };
        Self {
            name: appliance.name,
            os: appliance.os,
            memory_bytes: appliance.memory_bytes,
            disks: appliance.disks.into_iter().map(disk).collect(),
        }
    }
}

impl From<Marker> for pb::Marker {
    fn from(marker: Marker) -> Self {
        Self { path: marker.path, text: marker.text }
    }
}

impl From<pb::Marker> for Marker {
    fn from(marker: pb::Marker) -> Self {
        Self { path: marker.path, text: marker.text }
    }
}

impl From<Candidate> for pb::OsCandidate {
    fn from(candidate: Candidate) -> Self {
        let source = match candidate.source {
            Source::Osinfo => pb::OsSource::Osinfo,
            Source::OwnTable => pb::OsSource::OwnTable,
            Source::MarkerFile => pb::OsSource::MarkerFile,
            Source::Appliance => pb::OsSource::Appliance,
            Source::FileName => pb::OsSource::FileName,
        };
        Self { name: candidate.name, os: Some(candidate.os.into()), source: source.into() }
    }
}

/// A source that a newer peer knows and we do not counts as the weakest, the file's name.
impl From<pb::OsCandidate> for Candidate {
    fn from(candidate: pb::OsCandidate) -> Self {
        let source = match candidate.source() {
            pb::OsSource::Osinfo => Source::Osinfo,
            pb::OsSource::OwnTable => Source::OwnTable,
            pb::OsSource::MarkerFile => Source::MarkerFile,
            pb::OsSource::Appliance => Source::Appliance,
            pb::OsSource::FileName | pb::OsSource::Unspecified => Source::FileName,
        };
        let os = candidate.os.map_or_else(Os::unknown, Into::into);
        Self { name: candidate.name, os, source }
    }
}

/// Facts as bytes, for a store that keeps them whole.
#[must_use]
pub fn encode_facts(facts: &Facts) -> Vec<u8> {
    pb::Facts::from(facts.clone()).encode_to_vec()
}

/// The inverse of [`encode_facts`].
///
/// # Errors
/// [`Malformed::Undecodable`] if the bytes are no such message.
pub fn decode_facts(bytes: &[u8]) -> Result<Facts, Malformed> {
    let facts =
        pb::Facts::decode(bytes).map_err(|error| Malformed::Undecodable(error.to_string()))?;
    Ok(facts.into())
}

pub(super) fn facts_out(facts: Option<Box<Facts>>) -> Option<pb::Facts> {
    facts.map(|facts| (*facts).into())
}

pub(super) fn facts_in(facts: Option<pb::Facts>) -> Option<Box<Facts>> {
    facts.map(|facts| Box::new(facts.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::OsFamily;

    #[test]
    fn facts_survive_their_journey() {
        let facts = Facts {
            volume_label: "Debian 12.5.0 amd64 n".to_owned(),
            system_id: "LINUX".to_owned(),
            publisher_id: "p".to_owned(),
            application_id: "a".to_owned(),
            volume_size_bytes: 1 << 40,
            extensions: Extensions { joliet: true, rock_ridge: false, udf: true },
            boot: Boot { bios: false, uefi: true },
            partitions: Some(PartitionTable::Gpt),
            virtual_size_bytes: 7,
            appliance: Some(Appliance {
                name: "vm".to_owned(),
                os: "Debian".to_owned(),
                memory_bytes: 3,
                disks: vec![Disk { name: "d.vmdk".to_owned(), capacity_bytes: 9 }],
            }),
            markers: vec![Marker { path: ".disk/info".to_owned(), text: "t".to_owned() }],
            candidates: [
                Source::Osinfo,
                Source::OwnTable,
                Source::MarkerFile,
                Source::Appliance,
                Source::FileName,
            ]
            .map(|source| Candidate {
                name: source.to_string(),
                os: Os { family: OsFamily::Linux, ..Os::unknown() },
                source,
            })
            .to_vec(),
            database: "1".to_owned(),
            problem: Some("truncated".to_owned()),
        };
        assert_eq!(decode_facts(&encode_facts(&facts)), Ok(facts));
        assert_eq!(decode_facts(&[]), Ok(Facts::default()));
        assert!(decode_facts(&[0xff]).is_err());
    }
}
