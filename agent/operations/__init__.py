"""Operations on backups, one module or package for each."""
