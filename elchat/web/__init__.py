"""The web server: an OpenAI-compatible API and the page. `app.create_app` puts it together."""
