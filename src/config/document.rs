//! A TOML file, read key by key: every reader notes what is wrong and goes on, so that all mistakes come at once.

use std::{cell::RefCell, ops::RangeInclusive, path::Path, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::mistake::Mistake;
use crate::{
    size::Bytes,
    time::{UnixSeconds, format_duration, parse_duration},
};

/// The keys that may stand in one section.
#[derive(Debug)]
pub(super) struct Section {
    /// As it is written in the file: `[gateway]`, `[[listener]]`.
    pub(super) name: &'static str,
    /// Keys that work.
    pub(super) keys: &'static [&'static str],
    /// Keys that are known and do not work in this version, with what they stand for.
    pub(super) later: &'static [(&'static str, &'static str)],
}

/// A value and the line where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found<T> {
    pub(super) value: T,
    pub(super) line: usize,
}

impl<T> Found<T> {
    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Found<U> {
        Found { value: change(self.value), line: self.line }
    }
}

/// What was noted about one file so far.
#[derive(Debug)]
pub(super) struct Notes<'d> {
    file: &'d Path,
    text: &'d str,
    /// Where each line ends: a file of ten thousand devices asks for as many lines.
    line_ends: Vec<usize>,
    /// Lines that are no TOML: what was made up there to go on is not worth a mistake of its own.
    broken: RefCell<Vec<usize>>,
    mistakes: RefCell<Vec<Mistake>>,
    warnings: RefCell<Vec<Mistake>>,
}

impl<'d> Notes<'d> {
    pub(super) fn new(file: &'d Path, text: &'d str) -> Self {
        let line_ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
        Self {
            file,
            text,
            line_ends,
            broken: RefCell::default(),
            mistakes: RefCell::default(),
            warnings: RefCell::default(),
        }
    }

    /// Which file it is.
    pub(super) fn file(&self) -> &'d Path {
        self.file
    }

    /// Parses the text; what is no TOML is noted, and what could be read of it is returned.
    pub(super) fn parse(&self) -> Spanned<DeTable<'d>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let line = self.line(error.span().map_or(0, |span| span.start));
            let what = format!("this is no TOML: {}.", error.message().replace('\n', ", "));
            self.mistake(line, what, "The rules are on one page: https://toml.io.");
            self.broken.borrow_mut().push(line);
        }
        table
    }

    pub(super) fn mistake(&self, line: usize, what: impl Into<String>, remedy: impl Into<String>) {
        if self.broken.borrow().contains(&line) {
            return;
        }
        self.mistakes.borrow_mut().push(Mistake::at_line(self.file, line, what, remedy));
    }

    pub(super) fn warn(&self, line: usize, what: impl Into<String>, remedy: impl Into<String>) {
        self.warnings.borrow_mut().push(Mistake::at_line(self.file, line, what, remedy));
    }

    /// Refuses what is known but not built: one sentence, and no promise.
    pub(super) fn not_in_this_version(&self, line: usize, what: &str) {
        self.mistake(line, format!("{what}: not in this version."), "Take it out.");
    }

    pub(super) fn line(&self, offset: usize) -> usize {
        1 + self.line_ends.partition_point(|end| *end < offset)
    }

    /// (mistakes, warnings), each in the order of the file.
    pub(super) fn into_parts(self) -> (Vec<Mistake>, Vec<Mistake>) {
        let sorted = |notes: RefCell<Vec<Mistake>>| {
            let mut notes = notes.into_inner();
            notes.sort();
            notes.dedup();
            notes
        };
        (sorted(self.mistakes), sorted(self.warnings))
    }
}

/// One section of the file.
#[derive(Clone, Copy)]
pub(super) struct Table<'d> {
    notes: &'d Notes<'d>,
    section: &'static Section,
    entries: &'d DeTable<'d>,
    line: usize,
}

impl<'d> Table<'d> {
    /// Notes every key that `section` does not have.
    pub(super) fn new(notes: &'d Notes<'d>, section: &'static Section, entries: &'d DeTable<'d>, line: usize) -> Self {
        for key in entries.keys() {
            let (name, line) = (key.get_ref().as_ref(), notes.line(key.span().start));
            if let Some((_, stands_for)) = section.later.iter().find(|(later, _)| *later == name) {
                notes.not_in_this_version(line, &format!("`{name}` ({stands_for})"));
            } else if !section.keys.contains(&name) {
                notes.mistake(line, format!("unknown key `{name}` in {}.", section.name), remedy_for(name, section));
            }
        }
        Self { notes, section, entries, line }
    }

    /// The line where the section begins.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// The line of a key, or of the section where the key is absent.
    pub(super) fn line_of(&self, key: &str) -> usize {
        self.entries.get_key_value(key).map_or(self.line, |(key, _)| self.notes.line(key.span().start))
    }

    /// The keys that are there and known.
    pub(super) fn keys(&self) -> impl Iterator<Item = &'static str> {
        self.section.keys.iter().copied().filter(|key| self.has(key))
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Notes a key without which the section says nothing.
    pub(super) fn require(&self, key: &str, remedy: &str) {
        if !self.has(key) {
            self.notes.mistake(self.line, format!("{} has no `{key}`.", self.section.name), remedy);
        }
    }

    pub(super) fn text(&self, key: &'static str) -> Option<Found<&'d str>> {
        self.value(key, "a text in quotes", |value| value.as_str())
    }

    /// A text that is not empty, or the default.
    pub(super) fn text_or(&self, key: &'static str, default: &str) -> String {
        match self.text(key) {
            Some(found) if found.value.is_empty() => {
                self.notes.mistake(found.line, format!("`{key}` is empty."), "Write a value, or take the key out.");
                default.to_owned()
            }
            Some(found) => found.value.to_owned(),
            None => default.to_owned(),
        }
    }

    pub(super) fn flag(&self, key: &'static str) -> Option<Found<bool>> {
        self.value(key, "true or false", |value| value.as_bool())
    }

    pub(super) fn number<T>(&self, key: &'static str, range: RangeInclusive<T>) -> Option<Found<T>>
    where
        T: TryFrom<u64> + PartialOrd + std::fmt::Display + Copy,
    {
        let what = format!("a whole number from {} to {}", range.start(), range.end());
        let found = self.value(key, &what, |value| value.as_integer())?;
        let number =
            u64::from_str_radix(found.value.as_str(), found.value.radix()).ok().and_then(|n| T::try_from(n).ok());
        match number {
            Some(number) if range.contains(&number) => Some(found.map(|_| number)),
            _ => {
                let what = format!("`{key}` is {}, and not {what}.", found.value.as_str());
                self.notes.mistake(
                    found.line,
                    what,
                    format!("Write a number from {} to {}.", range.start(), range.end()),
                );
                None
            }
        }
    }

    pub(super) fn duration(&self, key: &'static str, range: RangeInclusive<Duration>) -> Option<Found<Duration>> {
        self.parsed(key, |text| {
            let duration = parse_duration(text)?;
            if range.contains(&duration) {
                return Ok(duration);
            }
            let write = format_duration;
            Err(format!("{text:?} is out of range: it may be {} to {}", write(*range.start()), write(*range.end())))
        })
    }

    /// A moment: a date of TOML with a zone, or the same as a text.
    pub(super) fn time(&self, key: &'static str) -> Option<Found<UnixSeconds>> {
        let found = self.value(key, "a time, like 2026-12-31T00:00:00Z", |value| match value {
            DeValue::Datetime(time) => Some(time.to_string()),
            value => value.as_str().map(str::to_owned),
        })?;
        match UnixSeconds::parse_rfc3339(&found.value) {
            Ok(value) => Some(Found { value, line: found.line }),
            Err(error) => {
                self.notes.mistake(
                    found.line,
                    format!("`{key}`: {error}."),
                    format!("Correct `{key}` in {}.", self.section.name),
                );
                None
            }
        }
    }

    pub(super) fn size(&self, key: &'static str, range: RangeInclusive<Bytes>) -> Option<Found<Bytes>> {
        self.parsed(key, |text| {
            let size: Bytes = text.parse().map_err(|e| format!("{text:?} is no size: {e}"))?;
            if range.contains(&size) {
                return Ok(size);
            }
            Err(format!("{text:?} is out of range: it may be {} to {}", range.start(), range.end()))
        })
    }

    /// A text that `parse` understands; its error is a sentence without its full stop.
    pub(super) fn parsed<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Found<T>> {
        let found = self.text(key)?;
        match parse(found.value) {
            Ok(value) => Some(Found { value, line: found.line }),
            Err(error) => {
                self.notes.mistake(
                    found.line,
                    format!("`{key}`: {error}."),
                    format!("Correct `{key}` in {}.", self.section.name),
                );
                None
            }
        }
    }

    /// One of a few words.
    pub(super) fn one_of<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> Option<Found<T>> {
        let found = self.text(key)?;
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == found.value) {
            return Some(Found { value: *value, line: found.line });
        }
        self.not_one_of(key, found.value, found.line, words);
        None
    }

    /// A list of texts.
    pub(super) fn texts(&self, key: &'static str) -> Option<Found<Vec<Found<&'d str>>>> {
        let found = self.value(key, "a list of texts", |value| value.as_array())?;
        let mut texts = Vec::new();
        for item in found.value {
            let line = self.notes.line(item.span().start);
            match item.get_ref().as_str() {
                Some(value) => texts.push(Found { value, line }),
                None => self.wrong_type(key, line, "a list of texts", item.get_ref()),
            }
        }
        Some(Found { value: texts, line: found.line })
    }

    /// A list of words out of a few.
    pub(super) fn words<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> Option<Found<Vec<T>>> {
        let found = self.texts(key)?;
        let mut values = Vec::new();
        for text in &found.value {
            match words.iter().find(|(word, _)| *word == text.value) {
                Some((_, value)) => values.push(*value),
                None => self.not_one_of(key, text.value, text.line, words),
            }
        }
        // Where every word is wrong, that is the mistake, and not that there is none.
        let is_wrong = values.is_empty() && !found.value.is_empty();
        (!is_wrong).then_some(Found { value: values, line: found.line })
    }

    /// A section below: `[key]`.
    pub(super) fn table(&self, key: &'static str, section: &'static Section) -> Option<Table<'d>> {
        let found = self.value(key, "a section", |value| value.as_table())?;
        Some(Table::new(self.notes, section, found.value, found.line))
    }

    /// Sections below, one after the other: `[[key]]`. `None` when there is none at all.
    pub(super) fn tables(&self, key: &'static str, section: &'static Section) -> Option<Vec<Table<'d>>> {
        let found = self.value(key, &format!("written as [[{key}]]"), |value| value.as_array())?;
        let mut tables = Vec::new();
        for item in found.value {
            let line = self.notes.line(item.span().start);
            match item.get_ref().as_table() {
                Some(entries) => tables.push(Table::new(self.notes, section, entries, line)),
                None => self.wrong_type(key, line, &format!("written as [[{key}]]"), item.get_ref()),
            }
        }
        Some(tables)
    }

    fn value<T>(
        &self,
        key: &'static str,
        what: &str,
        as_type: impl FnOnce(&'d DeValue<'d>) -> Option<T>,
    ) -> Option<Found<T>> {
        debug_assert!(self.section.keys.contains(&key), "{key} is missing in the list of {}", self.section.name);
        let value = self.entries.get(key)?;
        let line = self.line_of(key);
        match as_type(value.get_ref()) {
            Some(value) => Some(Found { value, line }),
            None => {
                self.wrong_type(key, line, what, value.get_ref());
                None
            }
        }
    }

    fn wrong_type(&self, key: &str, line: usize, what: &str, found: &DeValue<'_>) {
        self.notes.mistake(line, format!("`{key}` is not {what}, but {}.", type_of(found)), format!("Write {what}."));
    }

    fn not_one_of<T>(&self, key: &str, found: &str, line: usize, words: &[(&str, T)]) {
        let words: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
        self.notes.mistake(
            line,
            format!("`{key}` may not be {found:?}."),
            format!("It is one of {}.", words.join(", ")),
        );
    }
}

fn remedy_for(name: &str, section: &Section) -> String {
    let nearest = section.keys.iter().map(|key| (strsim::damerau_levenshtein(name, key), key)).min();
    match nearest {
        Some((distance, key)) if distance <= 2 => format!("Did you mean `{key}`?"),
        _ => format!("{} may hold: {}.", section.name, section.keys.join(", ")),
    }
}

fn type_of(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Section =
        Section { name: "the file", keys: &["port", "pumps", "colour"], later: &[("valve", "valves")] };
    const PUMP: Section = Section { name: "[[pumps]]", keys: &["name", "rate", "delay", "size"], later: &[] };

    fn notes_of(text: &str, read: impl FnOnce(&Table<'_>)) -> Vec<String> {
        let notes = Notes::new(Path::new("f.toml"), text);
        let parsed = notes.parse();
        read(&Table::new(&notes, &ROOT, parsed.get_ref(), 1));
        notes.mistakes.borrow().iter().map(|m| format!("{}: {} {}", m.line.unwrap_or(0), m.what, m.remedy)).collect()
    }

    fn read_all(root: &Table<'_>) {
        root.number::<u16>("port", 1..=65535);
        root.one_of("colour", &[("red", 1), ("green", 2)]);
        for pump in root.tables("pumps", &PUMP).unwrap_or_default() {
            pump.require("name", "Give it a name.");
            pump.text("name");
            pump.number::<u32>("rate", 1..=10);
            pump.duration("delay", Duration::from_secs(1)..=Duration::from_secs(60));
            pump.size("size", Bytes(1)..=Bytes::kib(1));
        }
    }

    #[test]
    fn a_good_file_gives_its_values_and_no_mistake() {
        let text = "port = 1_883\ncolour = 'red'\n[[pumps]]\nname = 'a'\n[[pumps]]\nname = 'b'\nrate = 0x0a\ndelay = '1s'\nsize = '1 KiB'\n";
        let notes = notes_of(text, |root| {
            assert_eq!(root.number::<u16>("port", 1..=65535), Some(Found { value: 1883, line: 1 }));
            let pumps = root.tables("pumps", &PUMP).expect("pumps");
            assert_eq!(pumps.iter().map(Table::line).collect::<Vec<_>>(), [3, 5]);
            assert_eq!(pumps[1].number::<u32>("rate", 1..=10), Some(Found { value: 10, line: 7 }));
            read_all(root);
        });
        assert_eq!(notes, Vec::<String>::new());
    }

    #[test]
    fn every_mistake_is_noted_with_its_line() {
        let text = "port = 70000\ncolor = 1\ncolour = 'blue'\nvalve = 1\n[[pumps]]\nrate = 'fast'\ndelay = '61s'\nsize = '2 KiB'\n";
        let found = notes_of(text, read_all);
        let expected = [
            "2: unknown key `color` in the file. Did you mean `colour`?",
            "4: `valve` (valves): not in this version. Take it out.",
            "1: `port` is 70000, and not a whole number from 1 to 65535. Write a number from 1 to 65535.",
            "3: `colour` may not be \"blue\". It is one of \"red\", \"green\".",
            "5: [[pumps]] has no `name`. Give it a name.",
            "6: `rate` is not a whole number from 1 to 10, but a text. Write a whole number from 1 to 10.",
            "7: `delay`: \"61s\" is out of range: it may be 1s to 1m. Correct `delay` in [[pumps]].",
            "8: `size`: \"2 KiB\" is out of range: it may be 1 B to 1 KiB. Correct `size` in [[pumps]].",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_no_toml_does_not_hide_the_rest() {
        let found = notes_of("port = \nshape = 1\n", read_all);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("1: this is no TOML:"), "{found:?}");
        assert!(found[1].starts_with("2: unknown key `shape`"), "{found:?}");
    }
}
