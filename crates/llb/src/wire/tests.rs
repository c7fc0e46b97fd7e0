use super::*;
#[test]
fn placeholder_empty() {
    assert!(decode_definition(&[]).is_ok());
}
