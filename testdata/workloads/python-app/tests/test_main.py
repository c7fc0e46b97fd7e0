from app.main import app, count


def test_count():
    assert count(2) == 20


def test_index():
    assert app.test_client().get("/").json == {"staves": 30}
