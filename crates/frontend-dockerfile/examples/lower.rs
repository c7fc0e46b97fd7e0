//! Lowers cases, one JSON object a line on standard input, as `stave debug lower` does; the argument is the
//! table of images. With a second argument, a number, all cases are answered that many times and only the
//! time of the last round is printed.

use std::{env, error::Error, fs, hint::black_box, io, time::Instant};

use stave_frontend_dockerfile::exchange::{Images, answer};

fn main() -> Result<(), Box<dyn Error>> {
    let path = env::args().nth(1).ok_or("usage: lower IMAGES [ROUNDS]")?;
    let images = Images::parse(&fs::read_to_string(path)?)?;
    let cases = io::read_to_string(io::stdin())?;
    let Some(rounds) = env::args().nth(2) else {
        for line in cases.lines() {
            println!("{}", answer(line, &images)?);
        }
        return Ok(());
    };
    let mut took = std::time::Duration::ZERO;
    for _ in 0..rounds.parse::<u32>()? {
        let start = Instant::now();
        for line in cases.lines() {
            black_box(answer(line, &images)?);
        }
        took = start.elapsed();
    }
    println!("{} cases in {took:?}", cases.lines().count());
    Ok(())
}
