"""What a model could write to make a page do something."""
# ruff: noqa: E501

from __future__ import annotations

XSS = [
    "<script>window.PWN=1</script>", "<img src=x onerror=window.PWN=1>", "<svg onload=window.PWN=1>",
    "[a](javascript:window.PWN=1)", "![x](javascript:window.PWN=1)", "[a](data:text/html,<script>window.PWN=1</script>)",
    "![foto](http://evil.test/x.png)", "<iframe src=javascript:window.PWN=1>", "[a](//evil.test)",
    "[a](/api/exportar)", "`<script>window.PWN=1</script>`", "```html\n<script>window.PWN=1</script>\n```",
    "```\"><script>window.PWN=1</script>\nx\n```", "<a href=\"javascript:window.PWN=1\">a</a>",
    "[a](vbscript:x)", "[a](JaVaScRiPt:window.PWN=1)", "[a](javascript&#58;window.PWN=1)", "<style>*{display:none}</style>",
    "<form action=//evil.test><button>a</button></form>", "<meta http-equiv=refresh content=0;url=//evil.test>",
    "<base href=//evil.test>", "<details open ontoggle=window.PWN=1>", "<math><mi//xlink:href=\"data:x,<script>\">",
    "[x]: javascript:window.PWN=1\n\n[x]", "| <img src=x onerror=window.PWN=1> | b |\n|--|--|\n| c | d |",
    "<button class=copiar onclick=window.PWN=1>", "<div id=texto></div>", "&lt;script&gt;window.PWN=1&lt;/script&gt;",
    "\u202e<script>window.PWN=1</script>", "<template><script>window.PWN=1</script></template>",
    "<object data=javascript:window.PWN=1>", "<link rel=stylesheet href=//evil.test>", "<video><source onerror=window.PWN=1>",
]  # fmt: skip
