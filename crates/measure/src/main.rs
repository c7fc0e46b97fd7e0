//! `measure CASE ROUNDS`: does a case so many times and prints nothing, for tools that count from outside.
//! `measure` alone lists the cases.

use std::process::ExitCode;

use stave_measure::Case;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => {
            for case in Case::ALL {
                println!("{}", case.name());
            }
            ExitCode::SUCCESS
        }
        [name, rounds] => {
            let case = Case::ALL.into_iter().find(|case| case.name() == name);
            let (Some(case), Ok(rounds)) = (case, rounds.parse::<u32>()) else {
                eprintln!("measure: no case is called {name}, or {rounds} is no number");
                return ExitCode::FAILURE;
            };
            let mut round = case.prepare();
            for _ in 0..rounds {
                round();
            }
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: measure [CASE ROUNDS]");
            ExitCode::FAILURE
        }
    }
}
