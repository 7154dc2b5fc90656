//! One manifest file: documents, kinds, and what is wrong with them, with line numbers. Pure: text in, objects out.
//!
//! A document that cannot be used makes the whole file unusable, and so does having none, so that a half-saved file changes nothing.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::kinds::{self, Parsed};
use super::{Problem, list, locate};

/// Documents in one file; a file is read whole.
const DOCUMENTS_MAX: usize = 10_000;
/// Errors, and warnings, kept of one file: nobody reads more before mending the first.
const PROBLEMS_OF_A_FILE_MAX: usize = 100;

/// An object and the line of its document.
#[derive(Debug, Clone, PartialEq)]
pub struct Located {
    pub parsed: Parsed,
    pub line: usize,
}

#[derive(Debug, Default)]
pub struct Manifest {
    pub objects: Vec<Located>,
    pub warnings: Vec<Problem>,
}

/// What every object has; the rest is read once the kind is known.
#[derive(Deserialize)]
struct Head {
    #[serde(rename = "apiVersion", default)]
    api_version: String,
    #[serde(default)]
    kind: String,
}

/// One document of a file, as a parser of a kind sees it.
pub struct Document<'a> {
    pub(super) text: Cow<'a, str>,
    /// Line of the file at which it starts, counting from 0.
    pub(super) line: usize,
    pub(super) json: bool,
    /// An object of an API server in place of text: it has no lines, and what its server knows beyond Weft is no mistake.
    live: Option<&'a serde_json::Value>,
}

/// Why a document cannot be used: line of the file, counting from 1, and the reason.
#[derive(Debug)]
pub struct Refused {
    pub line: usize,
    pub message: String,
}

impl<'a> Document<'a> {
    pub(super) fn new(text: Cow<'a, str>, line: usize, json: bool) -> Self {
        Self { text, line, json, live: None }
    }

    /// An object as an API server has it.
    pub fn live(object: &'a serde_json::Value) -> Self {
        Self { text: Cow::Borrowed(""), line: 0, json: true, live: Some(object) }
    }

    /// Nothing but white space and comments.
    fn is_empty(&self) -> bool {
        let empty = |line: &str| line.is_empty() || line.starts_with('#');
        self.text.lines().map(str::trim_start).all(empty)
    }

    /// Whether a kubelet reports this object's state.
    pub(super) fn is_live(&self) -> bool {
        self.live.is_some()
    }

    /// Deserializes the document; a field that the type does not know is handed to `unknown` with its path and line.
    pub fn read<T: DeserializeOwned>(&self, mut unknown: impl FnMut(String, usize)) -> Result<T, Refused> {
        if let Some(object) = self.live {
            return T::deserialize(object)
                .map_err(|error| Refused { line: 0, message: placed::<T>(object, &error) });
        }
        let mut note = |path: serde_ignored::Path<'_>| {
            // `?` stands for an Option on the way.
            let path = path.to_string().replace(".?", "");
            let line = self.line_of(&path);
            unknown(path, line);
        };
        if self.json {
            let mut json = serde_json::Deserializer::from_str(&self.text);
            return serde_ignored::deserialize(&mut json, &mut note)
                .map_err(|e| Refused { line: self.line + e.line().max(1), message: e.to_string() });
        }
        serde_ignored::deserialize(serde_yaml_ng::Deserializer::from_str(&self.text), &mut note).map_err(
            |e| {
                let line = e.location().map_or(1, |at| at.line());
                Refused { line: self.line + line, message: without_location(&e.to_string()) }
            },
        )
    }

    /// Line of the file, counting from 1, of a field.
    pub fn line_of(&self, path: &str) -> usize {
        self.line + locate::line_of(&self.text, path) + 1
    }

    pub fn refuse(&self, path: &str, message: impl Into<String>) -> Refused {
        Refused { line: self.line_of(path), message: message.into() }
    }

    /// A label or annotation is wrong, and `instead` says what counts in its place. A file is refused: its last good text is kept beyond
    /// a restart. An object of an API server has no earlier version after a restart: a refused Pod would be unknown to its node, which
    /// leaves it open. There it is a warning, so that the same counts before and after.
    pub(super) fn wrong_metadata(
        &self,
        path: &str,
        wrong: String,
        instead: &str,
        warn: &mut dyn FnMut(usize, String),
    ) -> Result<(), Refused> {
        if !self.is_live() {
            return Err(self.refuse(path, wrong));
        }
        warn(self.line_of(path), format!("{wrong}; {instead}"));
        Ok(())
    }
}

/// The error with the path of its field, which only the YAML reader tells.
fn placed<T: DeserializeOwned>(object: &serde_json::Value, error: &serde_json::Error) -> String {
    let text = object.to_string();
    match serde_yaml_ng::from_str::<T>(&text) {
        Err(error) => without_location(&error.to_string()),
        Ok(_) => error.to_string(),
    }
}

/// The line is reported on its own, in terms of the file and not of the document.
fn without_location(message: &str) -> String {
    message.split(" at line ").next().unwrap_or(message).to_owned()
}

/// Reads a file. `Err` holds every document's reason.
pub fn parse(file: &str, text: &str) -> Result<Manifest, Vec<Problem>> {
    let json = file.ends_with(".json");
    let documents = if json { vec![Document::new(Cow::Borrowed(text), 0, json)] } else { split(text) };
    let mut reading = Reading { file, manifest: Manifest::default(), errors: Vec::new() };
    if documents.len() > DOCUMENTS_MAX {
        return Err(vec![reading.problem(1, format!("more than {DOCUMENTS_MAX} documents"))]);
    }
    if documents.iter().all(Document::is_empty) {
        let message = "is empty: delete the file to remove its objects";
        return Err(vec![reading.problem(1, message.to_owned())]);
    }
    for document in documents {
        if let Err(refused) = reading.document(&document, false) {
            reading.refused(refused);
        }
    }
    if reading.errors.is_empty() { Ok(reading.manifest) } else { Err(reading.errors) }
}

/// A file half read.
struct Reading<'a> {
    file: &'a str,
    manifest: Manifest,
    errors: Vec<Problem>,
}

impl Reading<'_> {
    fn problem(&self, line: usize, message: String) -> Problem {
        Problem { file: self.file.to_owned(), line, message }
    }

    fn refused(&mut self, refused: Refused) {
        if self.errors.len() < PROBLEMS_OF_A_FILE_MAX {
            self.errors.push(self.problem(refused.line, refused.message));
        }
    }

    fn document(&mut self, document: &Document<'_>, within_list: bool) -> Result<(), Refused> {
        if document.is_empty() {
            return Ok(());
        }
        let head: Head = document.read(|_, _| {})?;
        if list::is_list(&head.api_version, &head.kind) {
            if within_list {
                return Err(document.refuse("kind", "a List within a List"));
            }
            for item in list::items(document)? {
                if let Err(refused) = self.document(&item, true) {
                    self.refused(refused);
                }
            }
            return Ok(());
        }
        let (file, warnings) = (self.file, &mut self.manifest.warnings);
        let mut warn = |line, message| {
            if warnings.len() < PROBLEMS_OF_A_FILE_MAX {
                warnings.push(Problem { file: file.to_owned(), line, message });
            }
        };
        let parsed = kinds::read(document, &head.api_version, &head.kind, &mut warn)?;
        let line = document.line_of("kind");
        self.manifest.objects.extend(parsed.map(|parsed| Located { parsed, line }));
        Ok(())
    }
}

/// The documents of a file with their kinds, the items of a List each by itself; for who reads more of a manifest than this
/// control plane does. Nothing of what [`parse`] checks is checked.
pub fn documents<'a>(file: &str, text: &'a str) -> Result<Vec<(String, Document<'a>)>, Refused> {
    let json = file.ends_with(".json");
    let whole = if json { vec![Document::new(Cow::Borrowed(text), 0, json)] } else { split(text) };
    let mut documents = Vec::new();
    for document in whole.into_iter().filter(|document| !document.is_empty()) {
        let head: Head = document.read(|_, _| {})?;
        if list::is_list(&head.api_version, &head.kind) {
            for item in list::items(&document)? {
                let head: Head = item.read(|_, _| {})?;
                documents.push((head.kind, item));
            }
        } else {
            documents.push((head.kind, document));
        }
    }
    Ok(documents)
}

/// Splits at the `---` lines, so that each document is judged by itself and keeps its place.
fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if marker {
            documents.push(Document::new(Cow::Borrowed(&text[start..at]), start_line, false));
            start = at + line.len();
            start_line = number + 1;
        }
        at += line.len();
    }
    documents.push(Document::new(Cow::Borrowed(&text[start..]), start_line, false));
    documents
}
