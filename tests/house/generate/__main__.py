"""Write the generated documents: `script/docs`."""

from tests.house.generate.documents import DOCUMENTS
from tests.house.source import CHECKOUT


def main() -> None:
    for name, text in DOCUMENTS.items():
        file = CHECKOUT / name
        said = "as it was"
        if not file.exists() or file.read_text() != text():
            file.write_text(text())
            said = "written"
        print(f"{name}: {said}")


if __name__ == "__main__":
    main()
