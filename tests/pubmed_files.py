"""PubMed XML made up for tests: records as one writes them, files as the library has them."""

import gzip
from pathlib import Path

HEAD = (
    '<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE PubmedArticleSet SYSTEM '
    '"http://dtd.nlm.nih.gov/ncbi/pubmed/out/pubmed_250101.dtd">\n<PubmedArticleSet>\n'
)
TAIL = "</PubmedArticleSet>\n"


def article(pmid, title="A title.", sections=(("", "Text of it."),), version=1, language="eng",
            date="<Year>2020</Year>", vernacular="", others="") -> str:  # fmt: skip
    """One PubmedArticle; `sections` are (label, inner XML), `others` whole OtherAbstract tags."""
    texts = "".join(
        f'<AbstractText Label="{label}">{text}</AbstractText>'
        if label
        else f"<AbstractText>{text}</AbstractText>"
        for label, text in sections
    )
    abstract = f"<Abstract>{texts}<CopyrightInformation>(c)</CopyrightInformation></Abstract>"
    return (
        f'<PubmedArticle><MedlineCitation Status="MEDLINE"><PMID Version="{version}">{pmid}</PMID>'
        "<DateRevised><Year>1999</Year></DateRevised><Article><Journal><JournalIssue>"
        f"<PubDate>{date}</PubDate></JournalIssue><Title>A journal</Title></Journal>"
        f"<ArticleTitle>{title}</ArticleTitle>{abstract if sections else ''}"
        f"{''.join(f'<Language>{code}</Language>' for code in language.split())}"
        f"{vernacular and f'<VernacularTitle>{vernacular}</VernacularTitle>'}</Article>"
        "<CommentsCorrectionsList><CommentsCorrections><PMID>77</PMID></CommentsCorrections>"
        f"</CommentsCorrectionsList>{others}</MedlineCitation></PubmedArticle>\n"
    )


def book(pmid, title="A chapter.", text="Of a book.", book_title="The book") -> str:
    chapter = f"<ArticleTitle>{title}</ArticleTitle>" if title else ""
    return (
        f'<PubmedBookArticle><BookDocument><PMID Version="1">{pmid}</PMID><Book><BookTitle>'
        f"{book_title}</BookTitle><PubDate><Year>2011</Year></PubDate></Book>{chapter}"
        f"<Language>eng</Language><Abstract><AbstractText>{text}</AbstractText></Abstract>"
        "<Sections><Section><SectionTitle>One</SectionTitle></Section></Sections>"
        "</BookDocument></PubmedBookArticle>\n"
    )


def deletion(*pmids) -> str:
    named = "".join(f'<PMID Version="1">{pmid}</PMID>' for pmid in pmids)
    return f"<DeleteCitation>{named}</DeleteCitation>\n"


def pubmed_file(path: Path, *records: str) -> Path:
    """A file of records, gzip where its name says so."""
    text = (HEAD + "".join(records) + TAIL).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.name.endswith(".gz") else text)
    return path
