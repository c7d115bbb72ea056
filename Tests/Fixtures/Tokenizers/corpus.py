"""Texts that are hard to tokenize, shared by the fixture scripts."""
import random

HARD = [
    "", " ", "  ", "\n", "\r\n", "\t", " \n ", "a", " a", "a ", "  a  b   c    ", "Hello world", " Hello  World!\n\nHow are you?\n",
    "I'm you're HE'S they'LL we'd can't won't 'tis y'all'd've o'clock 'S 'T DON'T", "it's 'sup 'ſ ſ 'ſs", "don’t ‘quoted’ “text”",
    "0", "1234567890", "3.14159e-10", "1,234,567.89", "in 2024, 12:30:59 on 01/02/03", "x1y22z333w4444", "٠١٢٣ ४५६ ๑๒๓ Ⅷ ½ ² ① 一二三", "0x1F 0b1010 1_000_000",
    "def f(x):\n    return x**2  # square\n\n\nclass A:\n\tpass\n", "for (int i = 0; i < n; ++i) { a[i] += b[i] * 2; }\n", "    \t  \t mixed \t indent\n\t\t  end",
    "if (a && !b || c) {\r\n\treturn \"x\\n\";\r\n}\r\n\r\n", "SELECT * FROM t WHERE a='b' AND c IN (1,2,3);", "<div class=\"x\">&amp;</div><!-- c -->", "{\"key\": [1, 2.5, null, true], \"k\": {}}",
    "https://example.com/a/b?c=d&e=f#g user@example.org C:\\path\\file.txt", "$$\\frac{a}{b}$$ \\begin{x} ~ ^ ` | @ # %", "!!!???...---___***===+++", "((((()))))[[[]]]{{{}}}", "a\u00a0b\u2003c\u3000d\u200be\ufefff", "tabs\t\ttwo\n\n\n\nfour newlines     five spaces",
    "line\u2028sep\u2029para\u0085nel\u000bvt\u000cff\u180emvs\u001funit", "\u0000nul\u0001soh\u007fdel", "é e\u0301 ñ n\u0303 Å \u212b A\u030a \u2126 Ω ﬁ ﬃ", "Ça va? Où êtes-vous, cœur naïf façade ÀÉÎÕÜ", "Straße GROSS ẞ ß İstanbul ıI ΣΊΣΥΦΟΣ",
    "Привет, мир! Как дела? Ёлка щука", "Γειά σου Κόσμε", "你好，世界！今天天气怎么样？我喜欢学习。", "日本語のテキスト：カタカナとひらがな、漢字。ﾊﾝｶｸ", "안녕하세요 세계! 한국어 텍스트 \u1112\u1161\u11ab", "مرحبا بالعالم، كيف حالك؟ َُِّ", "שלום עולם! נִקּוּד", "नमस्ते दुनिया क्षत्रिय ज्ञान", "สวัสดีชาวโลก ภาษาไทย", "வணக்கம் உலகம்", "สวัสดี ไก่ ทั้งหมด", "Xin chào thế giới tiếng Việt Nguyễn", "გამარჯობა ⵣ ᚠᛇᚻ ᏣᎳᎩ ኣማርኛ",
    "😀", "😀😃 😄", "👨‍👩‍👧‍👦 👩🏽‍💻 🏳️‍🌈 🇩🇪🇫🇷 ☕️ ❤️‍🔥 1️⃣", "emoji😀in👍🏿text", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝒻𝒶𝓃𝒸𝓎 🄰🅱 Ａ Ｂ １", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞", "\U0010ffff\U000e0001\ue000 \ufffd \ufffe", "a\u0300\u0301\u0302b \u0300start", "אבג abc אבג 123 אבג",
    "▁under ▁▁ score ▁", "Ġ Ċ ĉ ÂĠ", "<0x0A> <0xE2> <unk> <s> </s>", "<|endoftext|>", "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>b <|im_end|> c  <|im_end|>  d", "<|im_start|><|im_start|><|im_end|>", "<|im_start", "<|im_start|", "<|<|im_end|>|>", "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>", "<s>[INST] hello [/INST] hi </s><s>[INST] again [/INST]", "<bos><start_of_turn>user\nHi<end_of_turn>\n",
    "left  <LSTRIP>  right", "left  <RSTRIP>  right  ", "word<SINGLE>word <SINGLE> x,<SINGLE>. <SINGLE>9 é<SINGLE> <SINGLE>", "NORMÉ normé <Norme> <NORME> x<norme>", "<LSTRIP><RSTRIP>\n\t <LSTRIP> \u00a0<RSTRIP>\u3000x<BOTH>  \n <BOTH>y",
    "the the the theory there then them The THE tHe", "internationalization antidisestablishmentarianism", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "abcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabc", " " * 100 + "x" + " " * 33, "\n" * 40, "=" * 80, "ab" * 60 + " " + "ba" * 60, "mmmmMMMMmmmmMMMM McDonald iPhone HTTPServer XMLHttpRequest snake_case_name kebab-case CamelCase",
    "Once upon a time, in a small village by the sea, there lived a blacksmith who had an opinion on everything.", "The quick brown fox jumps over the lazy dog. " * 4,
]


def random_texts(count=60, seed=7):
    """Unlikely neighbours: characters drawn from many blocks, with spaces and ASCII between them."""
    generator = random.Random(seed)
    blocks = [(0x20, 0x7e)] * 6 + [(0x9, 0xd), (0x20, 0x20), (0x20, 0x20), (0x30, 0x39), (0x61, 0x7a), (0xa0, 0x24f), (0x300, 0x36f), (0x370, 0x5ff), (0x600, 0x6ff), (0x900, 0x97f), (0xe00, 0xe7f), (0x2000, 0x206f), (0x20a0, 0x20bf), (0x2190, 0x2bff), (0x3000, 0x30ff), (0x4e00, 0x4fff), (0xac00, 0xacff), (0xff00, 0xff5f), (0x1f300, 0x1f6ff), (0x1d400, 0x1d4ff)]
    return ["".join(chr(generator.randint(*generator.choice(blocks))) for _ in range(generator.randint(1, 24))) for _ in range(count)]


TEXTS = HARD + random_texts()
