//! The command line: words of the form `key=value`, separated by blanks.
//!
//! - `only=a,b*`: run the cases named, `*` at the end standing for any rest
//! - `skip=a,b*`: leave those out
//! - `mode=NAME`: do that instead of the cases
//! - `verbose`: say which case starts, before it does
//! - `emulator=qemu`, `emulator=bochs`: the processor under the hypervisor is that emulation's: leave out what it does wrong
//! - `vireo`: this is Vireo, whatever CPUID says: run its cases too

/// A command line, as the boot loader handed it over.
#[derive(Clone, Copy)]
pub struct CommandLine<'a>(pub &'a str);

impl<'a> CommandLine<'a> {
    /// The value of the last word `key=value`.
    pub fn value(&self, key: &str) -> Option<&'a str> {
        self.0
            .split_ascii_whitespace()
            .rev()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// Whether `word` stands there by itself.
    pub fn has(&self, word: &str) -> bool {
        self.0.split_ascii_whitespace().any(|other| other == word)
    }

    /// Whether the case `name` is to run.
    pub fn selects(&self, name: &str) -> bool {
        self.value("only").is_none_or(|list| matches(list, name))
            && !self.value("skip").is_some_and(|list| matches(list, name))
    }
}

/// Whether one pattern of the comma-separated `list` fits `name`.
fn matches(list: &str, name: &str) -> bool {
    list.split(',')
        .any(|pattern| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == pattern,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_and_words() {
        let line = CommandLine("exerciser.elf mode=hang verbose mode=reset x=");
        assert_eq!(line.value("mode"), Some("reset"));
        assert_eq!(line.value("x"), Some(""));
        assert_eq!(line.value("mod"), None);
        assert!(line.has("verbose"));
        assert!(!line.has("verb"));
    }

    #[test]
    fn selection() {
        assert!(CommandLine("").selects("anything"));
        let line = CommandLine("only=cpuid-*,pit skip=cpuid-page");
        assert!(line.selects("cpuid-leaves"));
        assert!(line.selects("pit"));
        assert!(!line.selects("pit-pic"));
        assert!(!line.selects("cpuid-page"));
    }
}
