"""The HTTP server: photos in, answers out, within fixed limits; `app` puts the parts together."""
