"""A documentation generator: LangChain and plain calls explain functions of Python's standard library.

The kind of application askonce was made for: several worker processes ask a model the same questions about
code again and again while somebody works on the code and on the prompts. Run ``python -m examples.docgen``;
read `application.py` first: it is all that an application has to write.
"""
