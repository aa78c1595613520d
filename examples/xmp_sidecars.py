"""Name people in digiKam and immich: python examples/xmp_sidecars.py clusters.csv

Writes PICTURE.xmp beside every picture of clusters.csv (starfc export DIR --to csv) that is in a named cluster. It has
the tag People/NAME of each of them. Sidecars that exist are left alone and counted.
"""

import csv
import sys
from collections import defaultdict
from pathlib import Path
from xml.sax.saxutils import escape

XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:digiKam="http://www.digikam.org/ns/1.0/"
 xmlns:lr="http://ns.adobe.com/lightroom/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/">
<digiKam:TagsList><rdf:Seq>{paths}</rdf:Seq></digiKam:TagsList>
<lr:hierarchicalSubject><rdf:Bag>{bars}</rdf:Bag></lr:hierarchicalSubject>
<dc:subject><rdf:Bag>{names}</rdf:Bag></dc:subject>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>
"""

# %% Everybody in each picture; a picture can have several faces
people = defaultdict(set)
with Path(sys.argv[1]).open(newline="", encoding="utf-8") as file:
    for row in csv.DictReader(file):
        if row["file"] and row["name"]:
            people[row["file"]].add(row["name"].replace("/", "_").replace("|", "_"))

# %% One sidecar per picture, which is never replaced
written = kept = 0
for picture, names in people.items():
    tags = {"names": "{}", "paths": "People/{}", "bars": "People|{}"}
    lists = {
        key: "".join(f"<rdf:li>{escape(tag.format(name))}</rdf:li>" for name in sorted(names))
        for key, tag in tags.items()
    }
    try:
        with Path(f"{picture}.xmp").open("x", encoding="utf-8") as sidecar:
            sidecar.write(XMP.format(**lists))
        written += 1
    except FileExistsError:
        kept += 1
print(f"{written} sidecars written, {kept} were there and are unchanged")
