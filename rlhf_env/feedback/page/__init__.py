"""The annotation page: a local web page on which people judge what a preference store asks for."""
