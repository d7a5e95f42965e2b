//! XML of strangers, element by element, within bounds. Knows no document; entities that a document
//! defines itself are left out, so that none can grow.

use quick_xml::Reader;
use quick_xml::events::{BytesStart, Event};

/// Elements within elements; the documents read here have eight at most.
const DEPTH_MAX: usize = 32;
/// Attributes looked at of one element.
const ATTRIBUTES_MAX: usize = 24;
/// Bytes kept of one text or attribute; what is longer is prose.
const TEXT_BYTES_MAX: usize = 2048;

/// An element, with the text that stands directly in it.
#[derive(Debug, Default)]
pub(super) struct Element {
    /// Without the prefix of its namespace.
    pub(super) name: String,
    attributes: Vec<(String, String)>,
    text: String,
}

impl Element {
    /// An attribute by its name without prefix.
    pub(super) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }

    pub(super) fn text(&self) -> &str {
        self.text.trim()
    }

    fn open(start: &BytesStart<'_>) -> Self {
        // Unchecked: a check for duplicates compares each with each.
        let mut attributes = start.attributes();
        let attributes = attributes.with_checks(false).take(ATTRIBUTES_MAX).flatten().map(|it| {
            let value = it.normalized_value(quick_xml::XmlVersion::Implicit1_0);
            let mut value = value.unwrap_or_default().into_owned();
            value.truncate(value.floor_char_boundary(TEXT_BYTES_MAX));
            (it.key.local_name().into_inner().to_owned(), value)
        });
        Self {
            name: start.local_name().into_inner().to_owned(),
            attributes: attributes.collect(),
            text: String::new(),
        }
    }

    fn push(&mut self, text: &str) {
        let left = TEXT_BYTES_MAX.saturating_sub(self.text.len());
        self.text.push_str(&text[..text.floor_char_boundary(left)]);
    }
}

/// Visits each element when it ends, with those around it, the outermost first. Ends at whatever is
/// no XML: what came before it counts.
pub(super) fn walk(text: &str, mut visit: impl FnMut(&[Element])) {
    let mut reader = Reader::from_str(text);
    let mut path: Vec<Element> = Vec::new();
    while let Ok(event) = reader.read_event() {
        match event {
            Event::Start(start) if path.len() < DEPTH_MAX => path.push(Element::open(&start)),
            Event::Start(_) | Event::Eof => return,
            Event::Empty(start) => {
                path.push(Element::open(&start));
                visit(&path);
                path.pop();
            }
            Event::End(_) => {
                visit(&path);
                path.pop();
            }
            Event::Text(piece) => append(&mut path, &piece.xml10_content()),
            Event::CData(piece) => append(&mut path, &piece.xml10_content()),
            Event::GeneralRef(entity) => match entity.resolve_char_ref() {
                Ok(Some(c)) => append(&mut path, c.encode_utf8(&mut [0; 4])),
                _ => {
                    let name = entity.into_inner();
                    let known = quick_xml::escape::resolve_predefined_entity(&name);
                    append(&mut path, known.unwrap_or_default());
                }
            },
            Event::Comment(_) | Event::Decl(_) | Event::PI(_) | Event::DocType(_) => {}
        }
    }
}

fn append(path: &mut [Element], text: &str) {
    if let Some(element) = path.last_mut() {
        element.push(text);
    }
}

/// Whether the elements have these names.
pub(super) fn is_at(path: &[Element], names: &[&str]) -> bool {
    path.len() == names.len() && path.iter().zip(names).all(|(element, name)| element.name == *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_visited_when_they_end() {
        let check = |text: &str, expected: &[&str]| {
            let mut visited = Vec::new();
            walk(text, |path| {
                let names: Vec<_> = path.iter().map(|it| &*it.name).collect();
                let last = path.last().expect("an element");
                let id = last.attribute("id").unwrap_or_default();
                visited.push(format!("{}:{id}:{}", names.join("/"), last.text()));
            });
            assert_eq!(visited, expected, "{text}");
        };
        check("<a><b id='1'>x</b><n:c n:id='2'/></a>", &["a/b:1:x", "a/c:2:", "a::"]);
        check("<a>1 &lt;&#65;&own; <![CDATA[<2>]]></a>", &["a::1 <A <2>"]);
        check("<!DOCTYPE a [<!ENTITY own 'grow'>]><a id='&own;'>&own;</a>", &["a::"]);
        check("<a><b></a>", &[]);
        check("no XML", &[]);
        check("", &[]);
        check(&"<a>".repeat(100_000), &[]);
        check(&format!("<a>{}</a>", "x".repeat(1 << 16)), &[&*format!("a::{}", "x".repeat(2048))]);
    }
}
