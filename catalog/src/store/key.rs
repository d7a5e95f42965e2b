//! The key that URLs are signed with: made once, and kept in the database, so that restarts and
//! backups keep it. What is signed with it is not known here.

use isotope_proto::signature::UrlKey;
use rusqlite::Connection;

use super::open::OpenError;

/// The database's key; made if it has none yet.
pub(super) fn ensure(
    connection: &Connection,
    sqlite: impl Fn(rusqlite::Error) -> OpenError,
) -> Result<UrlKey, OpenError> {
    let kept = connection.query_row("SELECT url_key FROM catalog", [], |row| {
        row.get::<_, Option<[u8; UrlKey::BYTES]>>(0)
    });
    if let Some(key) = kept.map_err(&sqlite)? {
        return Ok(UrlKey::from_bytes(key));
    }
    let mut key = [0; UrlKey::BYTES];
    getrandom::fill(&mut key).map_err(OpenError::Random)?;
    connection.execute("UPDATE catalog SET url_key = ?1", [key]).map_err(&sqlite)?;
    Ok(UrlKey::from_bytes(key))
}
