"""The demo. `python -m deploy.demo` plays it; `pictures.py` and `speech.py` say what is asked, and what is expected."""
