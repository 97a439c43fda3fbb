"""What is asked, in words. The version goes into the key of every answer: change a prompt, then its version."""

# In the demo only the version moves and the words stay: so it is the version that makes the answers new.
VERSION = "v1"
NEXT_VERSION = "v2"

SYSTEM = "You document Python for people who use it. Three short paragraphs, no headings."
EXPLAIN = "Explain `{name}` of {path}.\n\n{code}"

AGENT_SYSTEM = "You say who uses a function. Search the code once, then answer in one paragraph."
USES = "Who uses `{name}` of {path}?\n\n{code}"

EXAMPLE = "Write one example of `{name}` of {path}, with its output.\n\n{code}"
