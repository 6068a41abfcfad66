"""Code that travels with a tiny checkpoint of the interface of OpenGVLab's InternVL2 (``trust_remote_code``)."""
