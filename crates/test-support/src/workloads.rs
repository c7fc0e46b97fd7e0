//! The benchmark and test workloads: build contexts written to disk with the same bytes every time.
//!
//! Small contexts stand under `testdata/workloads/`; those with thousands of files or generated
//! instructions are made here. Every Dockerfile takes the build argument `REGISTRY`, the host that
//! serves the base images.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A build context with its Dockerfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// C compiled statically, copied into `scratch`.
    HelloC,
    /// `npm install` over the network and 3,000 source files.
    NodeApp,
    /// `pip install`, a stage that runs the tests, a final stage without them.
    PythonApp,
    /// 20,000 files, 200 MB, copied at once.
    ManyFiles,
    /// Twelve independent stages that sleep a second each.
    FanOut,
    /// Twelve independent stages that compute for about a second each.
    FanOutCpu,
    /// Sixty trivial RUN steps in a row.
    Chain60,
    /// One RUN that writes 500 MB of mixed content.
    BigLayer,
}

impl Workload {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::HelloC,
        Self::NodeApp,
        Self::PythonApp,
        Self::ManyFiles,
        Self::FanOut,
        Self::FanOutCpu,
        Self::Chain60,
        Self::BigLayer,
    ];

    /// Its name on command lines and in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::HelloC => "hello-c",
            Self::NodeApp => "node-app",
            Self::PythonApp => "python-app",
            Self::ManyFiles => "many-files",
            Self::FanOut => "fan-out",
            Self::FanOutCpu => "fan-out-cpu",
            Self::Chain60 => "chain-60",
            Self::BigLayer => "big-layer",
        }
    }

    /// Writes the context under `folder` and returns its path.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn write(self, folder: &Path) -> io::Result<PathBuf> {
        let context = folder.join(self.name());
        fs::create_dir_all(&context)?;
        match self {
            Self::HelloC | Self::PythonApp => copy_tree(&fixture(self.name()), &context)?,
            Self::NodeApp => {
                copy_tree(&fixture(self.name()), &context)?;
                node_sources(&context)?;
            }
            Self::ManyFiles => many_files(&context, 20_000)?,
            Self::FanOut => fs::write(context.join("Dockerfile"), fan_out("sleep 1"))?,
            Self::FanOutCpu => {
                let busy = "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done";
                fs::write(context.join("Dockerfile"), fan_out(busy))?;
            }
            Self::Chain60 => fs::write(context.join("Dockerfile"), chain(60))?,
            Self::BigLayer => fs::write(context.join("Dockerfile"), BIG_LAYER)?,
        }
        Ok(context)
    }
}

/// A context under `testdata/workloads/`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/workloads").join(name)
}

/// Copies plain files and folders.
///
/// # Errors
/// When a file cannot be read or written.
pub fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// `steps` RUN instructions, each writing one file.
pub fn chain(steps: usize) -> String {
    let mut text = String::from("ARG REGISTRY=localhost:5000\nFROM ${REGISTRY}/busybox\n");
    for step in 1..=steps {
        // Writing to a String cannot fail.
        let _infallible = writeln!(text, "RUN echo {step} > /f{step}");
    }
    text
}

fn fan_out(work: &str) -> String {
    let mut text = String::from("ARG REGISTRY=localhost:5000\n");
    let mut merge = String::from("FROM ${REGISTRY}/busybox\n");
    for stage in 1..=12 {
        let _infallible = write!(
            text,
            "FROM ${{REGISTRY}}/busybox AS s{stage}\nRUN {work}; echo stage {stage} > /out{stage}\n"
        );
        let _infallible = writeln!(merge, "COPY --from=s{stage} /out{stage} /out/");
    }
    text + &merge
}

const BIG_LAYER: &str = r#"ARG REGISTRY=localhost:5000
FROM ${REGISTRY}/debian
RUN mkdir /big && cd /big \
 && noise() { openssl enc -aes-128-ctr -K 0123456789abcdef0123456789abcde$1 -iv 00000000000000000000000000000000 -in /dev/zero 2>/dev/null; } \
 && noise 1 | base64 -w 76 | head -c 125000000 > lines-1; noise 2 | base64 -w 76 | head -c 125000000 > lines-2; \
    noise 3 | head -c 60000000 > random; \
    yes 'an ordinary line of a log, 2026-01-01T00:00:00Z level=info msg="all is well"' | head -c 65000000 > log; \
    noise 4 | od -An -tx1 -v | head -c 125000000 > hex
"#;

fn node_sources(context: &Path) -> io::Result<()> {
    let mut noise = Noise(7);
    let text = noise.text(2_000_000);
    for module in 0..3_000_usize {
        let folder = if module == 0 { "src".to_owned() } else { format!("src/d{}", module % 60) };
        fs::create_dir_all(context.join(&folder))?;
        let length = 300 + noise.below(5_700);
        let start = noise.below(text.len() - length);
        let comment = text[start..start + length].replace('\n', "\n// ");
        let source = format!("// {comment}\nmodule.exports = {module};\n");
        fs::write(context.join(folder).join(format!("m{module}.js")), source)?;
    }
    Ok(())
}

/// Writes `count` files of 10 kB on average, in folders of fifty, and a Dockerfile that copies them.
///
/// # Errors
/// When a file cannot be written.
pub fn many_files(context: &Path, count: usize) -> io::Result<()> {
    let dockerfile = "ARG REGISTRY=localhost:5000\nFROM ${REGISTRY}/busybox\nWORKDIR /data\nCOPY . .\n";
    fs::write(context.join("Dockerfile"), dockerfile)?;
    let mut noise = Noise(11);
    let text = noise.text(4_000_000).into_bytes();
    for file in 0..count {
        let folder = context.join(format!("p{:03}/q{:02}", file / 1_000, file / 50 % 20));
        if file % 50 == 0 {
            fs::create_dir_all(&folder)?;
        }
        // Most files are small, a few are large: the product of two uniform draws, squared.
        let draw = noise.below(200) * noise.below(200);
        let length = 200 + draw;
        let bytes = if file % 4 == 0 {
            noise.bytes(length)
        } else {
            let start = noise.below(text.len() - length);
            text[start..start + length].to_vec()
        };
        fs::write(folder.join(format!("f{file:06}.dat")), bytes)?;
    }
    Ok(())
}

/// A small deterministic generator (splitmix64): test content needs no better one.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ (value >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap_or(0)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend(self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }

    /// Lower-case words in lines: compresses as prose does.
    fn text(&mut self, length: usize) -> String {
        let mut words = Vec::new();
        for _ in 0..4_000 {
            let letters = 2 + self.below(8);
            words.push(
                (0..letters)
                    .map(|_| char::from(b"etaoinshrdlucmfwypvbgkqjxz"[self.below(26)]))
                    .collect::<String>(),
            );
        }
        let mut text = String::with_capacity(length + 16);
        while text.len() < length {
            for _ in 0..12 {
                text.push_str(&words[self.below(words.len())]);
                text.push(' ');
            }
            text.push('\n');
        }
        text.truncate(length);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_content_is_the_same_every_time() {
        let folders = [tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder")];
        let read = |folder: &tempfile::TempDir| {
            many_files(folder.path(), 120).expect("writes");
            fs::read(folder.path().join("p000/q02/f000101.dat")).expect("is there")
        };
        let [first, second] = [read(&folders[0]), read(&folders[1])];
        assert!(!first.is_empty());
        assert_eq!(first, second);
    }

    #[test]
    fn every_workload_has_a_dockerfile() {
        let folder = tempfile::tempdir().expect("a folder");
        for workload in Workload::ALL {
            if workload != Workload::ManyFiles {
                let context = workload.write(folder.path()).expect("writes");
                assert!(context.join("Dockerfile").is_file(), "{}", workload.name());
            }
        }
    }
}
