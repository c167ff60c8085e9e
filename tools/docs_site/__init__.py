"""The documentation site: what mkdocs is given beside the files in ``docs``.

`hooks` is called by mkdocs (``make docs``). Pages outside of ``docs`` (`links.OUTSIDE`) become
pages of the site, the placeholders of ``docs/reference`` are filled from the code (`reference`,
`command_line`), and links are translated from the repository to the site.
"""
