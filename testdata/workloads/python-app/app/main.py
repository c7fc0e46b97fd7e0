from flask import Flask

app = Flask(__name__)


@app.get("/")
def index():
    return {"staves": count(3)}


def count(rings):
    return rings * 10
