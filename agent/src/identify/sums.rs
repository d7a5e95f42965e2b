//! Checksum files as vendors publish them: which file has which SHA-256. Coreutils' form
//! (`DIGEST  NAME`, `DIGEST *NAME`) and BSD's (`SHA256 (NAME) = DIGEST`), signed or not. Computes no
//! digest and opens no file.

use isotope_proto::digest::Sha256;
use isotope_proto::name::EntryName;

/// Bytes read of one file: the largest ones list all images of all releases in some 100 KiB.
pub const BYTES_MAX: usize = 1 << 20;
/// Digests taken from one file.
pub const DIGESTS_MAX: usize = 10_000;

/// The files named in a text, by the last part of their paths, with their digests. Other lines are
/// passed over: comments, signatures, digests of other kinds, names that no file can have.
pub fn parse(text: &str) -> impl Iterator<Item = (&str, Sha256)> {
    let text = &text[..text.floor_char_boundary(BYTES_MAX)];
    text.lines().filter_map(|line| coreutils(line).or_else(|| bsd(line))).take(DIGESTS_MAX)
}

/// The digest of a file that a text beside it is about: that of its name, or the only one there is
/// if no name stands with it (`image.iso.sha256` with nothing but digits).
#[must_use]
pub fn of_file(text: &str, file_name: &str) -> Option<Sha256> {
    let named = parse(text).find(|(name, _)| *name == file_name).map(|(_, digest)| digest);
    named.or_else(|| text.trim().parse().ok())
}

/// `DIGEST  NAME`; a `*` before the name stands for a binary read, a `\` before the digest for
/// escapes in the name, which no image has.
fn coreutils(line: &str) -> Option<(&str, Sha256)> {
    let (digest, name) = line.trim_end().split_once(' ')?;
    let name = name.strip_prefix([' ', '*']).unwrap_or(name);
    Some((file_name(name)?, digest.parse().ok()?))
}

/// `SHA256 (NAME) = DIGEST`.
fn bsd(line: &str) -> Option<(&str, Sha256)> {
    let (name, digest) = line.trim().strip_prefix("SHA256 (")?.rsplit_once(") = ")?;
    Some((file_name(name)?, digest.trim().parse().ok()?))
}

/// The last part of a path: vendors sum from the folder above (`./netboot/mini.iso`).
fn file_name(path: &str) -> Option<&str> {
    let name = path.rsplit('/').next()?;
    EntryName::parse(name).is_ok().then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB";

    #[test]
    fn both_forms_are_read_and_everything_else_is_passed_over() {
        let check = |text: &str, expected: &[(&str, &str)]| {
            let found: Vec<_> =
                parse(text).map(|(name, digest)| (name, digest.to_string())).collect();
            let expected: Vec<_> =
                expected.iter().map(|(name, digest)| (*name, digest.to_lowercase())).collect();
            assert_eq!(found, expected, "{text}");
        };
        check(&format!("{A}  a.iso\n{B} *b b.iso\r\n"), &[("a.iso", A), ("b b.iso", B)]);
        check(&format!("{A}  ./netboot/mini.iso\n"), &[("mini.iso", A)]);
        check(
            &format!(
                "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n# a.iso: 9 bytes\n\
                 SHA256 (a.iso) = {A}\nSHA256 (a (1).iso) = {B}\n\
                 -----BEGIN PGP SIGNATURE-----\niQI="
            ),
            &[("a.iso", A), ("a (1).iso", B)],
        );
        check(&format!("SHA512 (a.iso) = {A}{B}\nMD5 (a.iso) = {A}\n"), &[]);
        check(&format!("{A}{B}  a.iso\n{}  b.iso\n{A}  ..\n{A}  \n{A}", &A[1..]), &[]);
        check(&format!("{A}  a/\nSHA256 () = {A}"), &[]);
        check("", &[]);
    }

    #[test]
    fn a_file_is_found_by_its_name_or_alone() {
        let text = format!("{A}  a.iso\n{B}  b.iso\n");
        let check = |text: &str, name, expected: Option<&str>| {
            let found = of_file(text, name).map(|it| it.to_string());
            assert_eq!(found, expected.map(str::to_lowercase), "{name} in {text}");
        };
        check(&text, "b.iso", Some(B));
        check(&text, "c.iso", None);
        check(&format!("{A}\n"), "c.iso", Some(A));
        check(&format!("{A}\n{B}\n"), "c.iso", None);
    }

    #[test]
    fn any_text_is_bounded() {
        let endless = format!("{A}  a.iso\n").repeat(20_000);
        assert_eq!(parse(&endless).count(), DIGESTS_MAX);
        assert_eq!(parse(&"é".repeat(BYTES_MAX)).count(), 0);
    }
}
